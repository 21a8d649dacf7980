"""The distance between an engine and a trainer: closed forms, and when it stops a run."""

from __future__ import annotations

import math

import pytest
import torch

from nemotron_style.runtime.errors import StepFailed
from nemotron_style.steps.blocks.generation.engine import Engine
from nemotron_style.steps.blocks.generation.logprob_gap import (
    EngineGap,
    measure_gap,
    measure_sample_gap,
)
from nemotron_style.steps.blocks.generation.sampling_params import SamplingParams
from nemotron_style.steps.blocks.model.language_model import build_model
from nemotron_style.steps.blocks.model.parallel import initialize
from nemotron_style.steps.blocks.settings.generation_config import sampler_limit
from nemotron_style.steps.blocks.settings.model_config import ModelConfig

CONFIG = ModelConfig(
    num_layers=2,
    hidden_size=32,
    ffn_hidden_size=64,
    num_attention_heads=4,
    num_query_groups=2,
    vocab_size=24,
    max_sequence_length=48,
)

LIMITS = {name: sampler_limit(name, half=False) for name in ("in_process", "vllm")}
TRAINER = torch.tensor([-1.0, -2.0, -0.5])


def test_the_error_is_the_mean_ratio_either_way() -> None:
    gap = measure_gap(TRAINER + torch.tensor([math.log(2), -math.log(4), 0.0]), TRAINER)
    assert gap.tokens == 3
    assert gap.token_mult_prob_error == pytest.approx((2 + 4 + 1) / 3, rel=1e-6)
    assert gap.max_log_prob_difference == pytest.approx(math.log(4), rel=1e-6)


def test_equal_log_probs_pass_every_limit() -> None:
    gap = measure_gap(TRAINER, TRAINER.clone())
    assert gap == EngineGap(3, 1.0, 0.0)
    for engine, limit in LIMITS.items():
        gap.require(limit, engine=engine)


@pytest.mark.parametrize("shift", [0.0011, math.inf, math.nan])
def test_a_gap_that_is_too_wide_or_no_number_stops_the_run(shift: float) -> None:
    gap = measure_gap(TRAINER + shift, TRAINER)
    with pytest.raises(StepFailed, match=r"in_process: token_mult_prob_error: .*below 1\.001"):
        gap.require(LIMITS["in_process"], engine="in_process")


def test_vllm_may_round_more() -> None:
    gap = measure_gap(TRAINER + 0.05, TRAINER)
    gap.require(LIMITS["vllm"], engine="vllm")
    with pytest.raises(StepFailed):
        gap.require(LIMITS["in_process"], engine="in_process")


def test_samples_of_another_temperature_or_of_other_weights_are_seen() -> None:
    initialize(seed=1)
    model = build_model(CONFIG, ddp=False)
    prompts = [[3, 4, 5], [6, 7]]
    engine = Engine(model, CONFIG)
    drawn = engine.generate(
        prompts,
        SamplingParams(max_new_tokens=12, temperature=0.7, stop_ids=[2]),
        samples_per_prompt=4,
        seed=5,
    )
    gap = measure_sample_gap(model, prompts, drawn, temperature=0.7)
    assert gap.tokens == sum(len(sample.tokens) for group in drawn for sample in group)
    gap.require(LIMITS["in_process"], engine="in_process")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.5)
    assert measure_sample_gap(model, prompts, drawn, temperature=0.7).token_mult_prob_error > 1.001
