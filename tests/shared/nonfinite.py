"""Training runs into which a NaN is put, and what must come of it."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from nemotron_style.runtime.errors import StepFailed
from nemotron_style.steps.blocks.generation import engine
from nemotron_style.steps.blocks.http.client import HttpClient
from nemotron_style.steps.blocks.training import microbatch
from nemotron_style.steps.blocks.training.loop import TrainingLoop
from nemotron_style.steps.blocks.training.optimizer import CpuAdamW

SPOTS = ("scored log-prob", "loss", "log-prob", "gradient", "weight")
"""A log-prob is scored without a gradient, in validation above all."""
SAMPLING_SPOTS = ("reward", "infinite reward", "sampled log-prob", *SPOTS)
"""Of recipes that sample, and have what they sampled judged.

Rewards come first: an attempt that goes on does not ask again for verdicts that it has.
"""


@contextmanager
def nan_at(spot: str, step: int) -> Iterator[None]:
    """Put a NaN into ``step`` of whatever recipe runs meanwhile."""
    plain_step, plain_logprobs = CpuAdamW.step, microbatch.response_logprobs
    plain_steps, plain_sample, plain_request = (
        TrainingLoop.steps,
        engine.sample_tokens,
        HttpClient.request,
    )
    current = [0]

    def hits(*spots: str) -> bool:
        return spot in spots and current[0] == step

    def steps(loop, *done, **options):
        for number in plain_steps(loop, *done, **options):
            current[0] = number
            yield number

    def response_logprobs(*arguments, **options):
        logprobs = plain_logprobs(*arguments, **options)
        kind = "log-prob" if logprobs.requires_grad else "scored log-prob"
        return logprobs * math.nan if hits(kind) else logprobs

    def sample_tokens(*arguments, **options):
        tokens, logprobs = plain_sample(*arguments, **options)
        return tokens, logprobs * math.nan if hits("sampled log-prob") else logprobs

    async def request(*arguments, **options):
        answer = await plain_request(*arguments, **options)
        if hits("reward", "infinite reward"):
            spoil(answer, math.nan if spot == "reward" else math.inf)
        return answer

    def update(optimizer, lr, *, loss, **options):
        if hits("gradient"):
            optimizer.parameters[0].main_grad.view(-1)[0] = math.nan
        norm = plain_step(optimizer, lr, loss=math.nan if hits("loss") else loss, **options)
        if hits("weight"):
            with torch.no_grad():
                optimizer.parameters[-1].view(-1)[-1] = math.inf
        return norm

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TrainingLoop, "steps", steps)
        patch.setattr(CpuAdamW, "step", update)
        patch.setattr(microbatch, "response_logprobs", response_logprobs)
        patch.setattr(engine, "sample_tokens", sample_tokens)
        patch.setattr(HttpClient, "request", request)
        yield


def spoil(answer: dict[str, Any], number: float) -> None:
    """Make ``number`` every score that a reward model gave, or the first of a judge's verdict."""
    for result in answer.get("results", ()):
        result["score"] = number
    for choice in answer.get("choices", ()):
        verdict = re.sub(r'("score_1": )[^,]+', rf"\g<1>{number}", choice["message"]["content"])
        choice["message"]["content"] = verdict.replace("inf", "Infinity").replace("nan", "NaN")


def fail_at_every_spot(
    train: Callable[[], object], run_dir: Path, *, last: int, spots: Sequence[str] = SPOTS
) -> None:
    """Run ``train`` with a NaN at each spot, in its first update and in the last.

    The run must end before anything is kept that is not finite; each next one goes on from the
    state before. ``train`` validates and saves after every step and has ``last`` of them.
    """
    for step in (1, last):
        for spot in spots:
            with nan_at(spot, step), pytest.raises(StepFailed) as failure:
                train()
            told = str(failure.value)
            assert "finite" in told or "judgements failed" in told, (spot, told)
            if spot in ("loss", "log-prob", "gradient"):
                assert f"step {step}" in told, spot
            states = sorted((run_dir / "checkpoints").glob("step-*"))
            assert [int(path.name.split("-")[1]) for path in states][-1:] == list(range(1, step))[
                -1:
            ]
