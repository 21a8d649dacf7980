"""A plan holds every response once, keeps its limits, and puts like lengths together."""

from __future__ import annotations

import random

import pytest
import torch

from nemotron_style.steps.blocks.model import parallel
from nemotron_style.steps.blocks.model.prefix_packing import Group
from nemotron_style.steps.blocks.training import microbatch_plan
from nemotron_style.steps.blocks.training.microbatch_plan import plan_microbatches


@pytest.fixture(autouse=True, scope="module")
def _job():
    parallel.initialize()


def group(prompt: int, *responses: int) -> Group:
    return Group([0] * prompt, [[1] * length for length in responses])


def random_groups(count: int = 12) -> list[Group]:
    draw = random.Random(4)
    return [
        group(draw.randrange(1, 9), *(draw.randrange(1, 7) for _ in range(draw.randrange(1, 6))))
        for _ in range(count)
    ]


def responses(plan) -> list[tuple[int, int]]:
    """(group, response) of everything planned."""
    return [(part.group, n) for batch in plan for part in batch.parts for n in part.responses]


@pytest.mark.parametrize("most", [1, 2, 3, 7, 100, None])
def test_every_response_is_planned_once_within_the_limit(most: int | None) -> None:
    groups = random_groups()
    plan = plan_microbatches(groups, max_responses=most)
    every = [(g, n) for g, one in enumerate(groups) for n in range(len(one.responses_ids))]
    assert sorted(responses(plan)) == every
    for batch in plan:
        assert len({len(part.responses) for part in batch.parts}) == 1
        assert most is None or len(responses([batch])) <= most


def test_groups_stay_whole_where_one_fits() -> None:
    plan = plan_microbatches([group(2, 1, 1, 1, 1)] * 5, max_responses=11)
    assert [[part.group for part in batch.parts] for batch in plan] == [[0, 1], [2, 3], [4]]
    assert {part.responses for batch in plan for part in batch.parts} == {range(4)}


def test_a_group_is_divided_where_it_does_not_fit() -> None:
    plan = plan_microbatches([group(2, 1, 1, 1, 1)] * 2, max_responses=3)
    assert [list(batch.parts) for batch in plan] == [
        [(0, range(3, 4)), (1, range(3, 4))],
        [(0, range(3))],
        [(1, range(3))],
    ]


@pytest.mark.parametrize("limit", [1, 20, 60])
def test_padded_tokens_are_limited_but_a_group_stays_whole(limit: int) -> None:
    groups = random_groups()
    plan = plan_microbatches(groups, max_tokens=limit)
    assert sorted({part.group for batch in plan for part in batch.parts}) == list(range(12))
    for batch in plan:
        assert batch.pack(groups).tokens_BS.numel() <= limit or len(batch.parts) == 1


def test_ranks_share_the_batch_and_short_and_long_ones_alike(monkeypatch) -> None:
    groups = [group(1, length) for length in (9, 1, 8, 2, 7, 3)]
    monkeypatch.setattr(microbatch_plan, "data_world", lambda: 2)
    shares = []
    for rank in range(2):
        monkeypatch.setattr(microbatch_plan, "data_rank", lambda rank=rank: rank)
        shares.append(responses(plan_microbatches(groups, max_responses=2)))
    assert shares == [[(1, 0), (5, 0), (2, 0)], [(3, 0), (4, 0), (0, 0)]]
    assert responses(plan_microbatches(groups, deal=False)) == [
        (number, 0) for number in (1, 3, 5, 4, 2, 0)
    ]


def test_lone_responses_go_by_whole_rows_and_several_by_the_longest_response() -> None:
    lone = [group(9, 1), group(1, 4), group(2, 2)]
    assert responses(plan_microbatches(lone)) == [(2, 0), (1, 0), (0, 0)]
    several = [group(1, 5, 1), group(9, 2, 1), group(2, 2, 2)]
    assert [part.group for part in plan_microbatches(several)[0].parts] == [2, 1, 0]


def test_the_index_finds_the_responses_in_a_table() -> None:
    groups = [group(2, 1, 2, 3), group(3, 4, 5, 6)]
    table = torch.tensor([[1, 2, 3], [4, 5, 6]])
    for batch in plan_microbatches(groups, max_responses=2):
        assert torch.equal(table[batch.index], batch.pack(groups).mask_BNR.sum(-1))
