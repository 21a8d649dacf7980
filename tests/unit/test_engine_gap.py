"""The distance between an engine and a trainer: closed forms, and when it stops a run."""

from __future__ import annotations

import math

import pytest
import torch

from nemotron_style.runtime.errors import StepFailed
from nemotron_style.steps.blocks.engine_gap import LIMITS, EngineGap, measure_gap

TRAINER = torch.tensor([[-1.0, -2.0, 0.0], [-0.5, 0.0, 0.0]])
MASK = torch.tensor([[True, True, False], [True, False, False]])


def test_the_error_is_the_mean_ratio_either_way_over_counted_tokens() -> None:
    engine = TRAINER + torch.tensor([[math.log(2), -math.log(4), 9.0], [0.0, math.nan, 9.0]])
    gap = measure_gap(engine, TRAINER, MASK)
    assert gap.tokens == 3
    assert gap.token_mult_prob_error == pytest.approx((2 + 4 + 1) / 3, rel=1e-6)
    assert gap.max_log_prob_difference == pytest.approx(math.log(4), rel=1e-6)


def test_equal_log_probs_pass_every_limit() -> None:
    gap = measure_gap(TRAINER, TRAINER.clone(), MASK)
    assert gap == EngineGap(3, 1.0, 0.0)
    for engine, limit in LIMITS.items():
        gap.require(limit, engine=engine)


@pytest.mark.parametrize("shift", [0.0011, math.inf, math.nan])
def test_a_gap_that_is_too_wide_or_no_number_stops_the_run(shift: float) -> None:
    engine = torch.where(MASK, TRAINER + shift, TRAINER)
    with pytest.raises(StepFailed, match=r"in_process: token_mult_prob_error: .*below 1\.001"):
        measure_gap(engine, TRAINER, MASK).require(LIMITS["in_process"], engine="in_process")


def test_vllm_may_round_more() -> None:
    gap = measure_gap(TRAINER + 0.05, TRAINER, MASK)
    gap.require(LIMITS["vllm"], engine="vllm")
    with pytest.raises(StepFailed):
        gap.require(LIMITS["in_process"], engine="in_process")
