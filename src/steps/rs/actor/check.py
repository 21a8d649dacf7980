"""What must hold before the first update: machine, sampler, and who gives the rewards."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from nemotron_style.runtime.errors import InputError, Problem
from nemotron_style.steps.blocks.generation.backend import GenerationEngine
from nemotron_style.steps.blocks.generation.logprob_gap import EngineGap, measure_sample_gap
from nemotron_style.steps.blocks.generation.sampling_params import SamplingParams
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
    gap.require(config.agreement_limit, engine=config.generation)
    return gap
