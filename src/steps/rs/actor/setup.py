"""What a config asks for, as the parts that do it: how responses are drawn, and who judges them."""

from __future__ import annotations

from nemotron_style.runtime.errors import InputError, Problem
from nemotron_style.runtime.step.context import StepContext
from nemotron_style.steps.blocks.generation.sampling_params import SamplingParams
from nemotron_style.steps.blocks.http.endpoint import Address, read_address, read_token
from nemotron_style.steps.blocks.http.retry import RetryPolicy
from nemotron_style.steps.blocks.reward.client import RewardClient
from nemotron_style.steps.rs.actor.config import Config


def plan_sampling(config: Config, limit: int, *, stop: int) -> SamplingParams:
    """How responses are drawn from a model that holds ``limit`` tokens."""
    given, lengths = config.model.rs.sampling_params, config.model.rs.length_params
    longest, context = config.max_new_tokens(limit), config.context(limit)
    if longest >= context:
        raise InputError(
            Problem(
                key="model.rs.length_params.max_length",
                what="leaves no room for a prompt",
                got=str(longest),
                allowed=f"1 to {context - 1}: the context is {context} tokens",
            )
        )
    return SamplingParams(
        max_new_tokens=longest,
        min_new_tokens=min(lengths.min_length, longest),
        temperature=0.0 if given.use_greedy else given.temperature,
        top_k=given.top_k,
        top_p=given.top_p,
        repetition_penalty=given.repetition_penalty,
        stop_ids=[stop],
        end_strings=given.end_strings,
    )


def open_client(config: Config, ctx: StepContext) -> RewardClient:
    """The client of the reward model that the config names."""
    waiting = config.remote_rm.waiting
    return RewardClient(
        find_address(config, ctx),
        token=read_token(config.remote_rm.token_env),
        retry_policy=RetryPolicy(
            tries=waiting.tries,
            timeout=waiting.timeout,
            first_pause=waiting.first_pause,
            longest_pause=waiting.longest_pause,
        ),
        seed=config.seed,
        stopping=lambda: ctx.stopping,
    )


def find_address(config: Config, ctx: StepContext) -> Address:
    """The address that the config names, or that of the service that was started beside the step.

    Raises InputError when there is neither, StepFailed when the service ended instead.
    """
    if config.address is not None:
        return config.address
    url = ctx.service("reward")
    if url is not None:
        return read_address(url)
    raise InputError(
        Problem(
            key="remote_rm.host",
            what="no reward model is named",
            fix="start one with reward/serve and set remote_rm.host and remote_rm.port",
        )
    )
