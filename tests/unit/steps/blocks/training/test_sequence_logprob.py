"""Sums of log-probs do not depend on which groups share a pass."""

from __future__ import annotations

import random

import pytest
import torch

from nemotron_style.steps.blocks.model import parallel
from nemotron_style.steps.blocks.model.language_model import build_model
from nemotron_style.steps.blocks.model.logprob import response_logprobs
from nemotron_style.steps.blocks.model.prefix_packing import Group, pack
from nemotron_style.steps.blocks.training.sequence_logprob import score_groups
from small_model import ONE_LAYER


@pytest.mark.parametrize("limit", [1, 40, 1000])
def test_every_response_has_the_sum_over_its_own_tokens(limit: int) -> None:
    parallel.initialize()
    model, draw = build_model(ONE_LAYER, seed=3, ddp=False), random.Random(2)

    def ids(most: int) -> list[int]:
        return [draw.randrange(30) for _ in range(draw.randint(2, most))]

    groups = [Group(ids(9), [ids(6) for _ in range(n)]) for n in (1, 3, 2, 3, 1, 3)]
    last = [draw.randint(1, 6) for _ in groups]
    every = score_groups(model, groups, micro_batch_tokens=limit)
    tails = score_groups(model, groups, micro_batch_tokens=limit, last=last)
    for number, group in enumerate(groups):
        for n, response in enumerate(group.responses_ids):
            with torch.no_grad():
                alone = response_logprobs(model, pack([Group(group.prompt_ids, [response])]))[0, 0]
            assert every[number][n] == pytest.approx(float(alone.sum()), abs=1e-4)
            assert tails[number][n] == pytest.approx(float(alone[-last[number] :].sum()), abs=1e-4)
