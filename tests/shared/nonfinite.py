"""Training runs into which a NaN is put, and what must come of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from nemotron_style.runtime.errors import StepFailed
from nemotron_style.steps.blocks.training import microbatch
from nemotron_style.steps.blocks.training.loop import TrainingLoop
from nemotron_style.steps.blocks.training.optimizer import CpuAdamW

SPOTS = ("loss", "log-prob", "gradient", "weight")


@contextmanager
def nan_at(spot: str, step: int) -> Iterator[None]:
    """Put a NaN into the update of ``step`` of whatever recipe runs meanwhile."""
    plain_step, plain_logprobs = CpuAdamW.step, microbatch.response_logprobs
    plain_steps, current = TrainingLoop.steps, [0]

    def steps(loop, *done, **options):
        for number in plain_steps(loop, *done, **options):
            current[0] = number
            yield number

    def response_logprobs(*arguments, **options):
        logprobs = plain_logprobs(*arguments, **options)
        hit = spot == "log-prob" and current[0] == step and logprobs.requires_grad
        return logprobs * math.nan if hit else logprobs

    def update(optimizer, lr, *, loss, **options):
        hit = spot if current[0] == step else ""
        if hit == "gradient":
            optimizer.parameters[0].main_grad.view(-1)[0] = math.nan
        norm = plain_step(optimizer, lr, loss=math.nan if hit == "loss" else loss, **options)
        if hit == "weight":
            with torch.no_grad():
                optimizer.parameters[-1].view(-1)[-1] = math.inf
        return norm

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TrainingLoop, "steps", steps)
        patch.setattr(CpuAdamW, "step", update)
        patch.setattr(microbatch, "response_logprobs", response_logprobs)
        yield


def fail_at_every_spot(train: Callable[[], object], run_dir: Path, *, last: int) -> None:
    """Run ``train`` with a NaN at each spot, in its first update and in the last.

    The run must end before anything is kept that is not finite; each next one goes on from the
    state before. ``train`` saves after every step and has ``last`` of them.
    """
    for step in (1, last):
        for spot in SPOTS:
            with nan_at(spot, step), pytest.raises(StepFailed, match="finite") as failure:
                train()
            if spot != "weight":
                assert f"step {step}" in str(failure.value), spot
            states = sorted((run_dir / "checkpoints").glob("step-*"))
            assert [int(path.name.split("-")[1]) for path in states][-1:] == list(range(1, step))[
                -1:
            ]
