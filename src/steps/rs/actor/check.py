"""What must hold before the first update: machine, sampler, and who gives the rewards."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from nemotron_style.runtime.errors import InputError, Problem
from nemotron_style.steps.blocks.data.chat.interface import Chat
from nemotron_style.steps.blocks.data.conversation import parse_conversation
from nemotron_style.steps.blocks.data.prompt import Prompt
from nemotron_style.steps.blocks.generation.backend import GenerationEngine
from nemotron_style.steps.blocks.generation.logprob_gap import EngineGap, measure_sample_gap
from nemotron_style.steps.blocks.generation.sampling_params import SamplingParams
from nemotron_style.steps.blocks.reward.client import Health
from nemotron_style.steps.rs.actor.config import Config
from nemotron_style.steps.rs.actor.rollout import SeededPrompt

PROBED_PROMPTS, PROBED_SAMPLES = 8, 4


def check_prompts(config: Config, available: int) -> None:
    """Refuse a step of more prompts than there are, unless they may be repeated."""
    wanted = config.model.rs.num_rollout_samples
    if config.model.data.sample or available >= wanted:
        return
    raise InputError(
        Problem(
            key="model.rs.num_rollout_samples",
            what="a step takes more prompts than there are",
            got=str(wanted),
            allowed=f"up to {available}",
            fix="lower it, or set model.data.sample=true to repeat prompts",
        )
    )


def check_reward_room(
    health: Health, prompts: Sequence[Prompt], chat: Chat, max_new_tokens: int
) -> None:
    """Refuse prompts whose longest response the reward model may not read to its end.

    Such a response would come after hours, and no score for it is a failure of the run. Tokens are
    the policy's; a reward model of another tokenizer counts a little differently.
    """
    if health.max_tokens is None:
        return
    longest = max(prompts, key=lambda prompt: len(prompt.ids))
    # a token for the response, and what the chat format writes around it
    whole = parse_conversation({"messages": longest.answered(".")})
    room = health.max_tokens - (len(chat.conversation_ids(whole)) - 1)
    if max_new_tokens <= room:
        return
    raise InputError(
        Problem(
            key="model.rs.length_params.max_length",
            what="a response may be longer than what the reward model reads",
            got=f"{max_new_tokens}, after a prompt of {len(longest.ids)} tokens",
            allowed=f"at most {room}: the reward model reads {health.max_tokens} tokens",
            fix="lower it, leave long prompts out with model.data.long_rows=skip and a smaller "
            "model.encoder_seq_length, or serve a reward model trained with a larger "
            "model.data.seq_length",
        )
    )


def check_reward_model(before: str, now: str) -> None:
    """Refuse to go on with another reward model than the one that gave the rewards so far."""
    if before != now:
        raise InputError(
            Problem(
                key="remote_rm",
                what="the run was trained with another reward model than the one that answers",
                got=now,
                allowed=before,
                fix="serve that one, or begin anew with --fresh",
            )
        )


def check_sampler(
    config: Config,
    engine: GenerationEngine,
    model: nn.Module,
    prompts: Sequence[SeededPrompt],
    *,
    max_new_tokens: int,
) -> EngineGap:
    """Refuse to train on samples to which the trainer gives other log-probs than the engine.

    A few of ``prompts`` are answered for it, with nothing barred from being sampled.
    """
    probed = prompts[:PROBED_PROMPTS]
    temperature = config.model.rs.sampling_params.temperature
    ids = [one.prompt.ids for one in probed]
    samples = engine.generate(
        ids,
        SamplingParams(max_new_tokens=max_new_tokens, temperature=temperature),
        samples_per_prompt=PROBED_SAMPLES,
        seed=[one.seed for one in probed],
    )
    gap = measure_sample_gap(model, ids, samples, temperature=temperature)
    key = "model.rs.agreement_limit"
    gap.require(config.agreement_limit, engine=config.generation, key=key)
    return gap
