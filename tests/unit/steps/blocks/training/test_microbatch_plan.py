"""A plan holds every response once, keeps its limits, and puts like lengths together."""

from __future__ import annotations

import random
from itertools import chain

import pytest
import torch

from nemotron_style.steps.blocks.model import parallel
from nemotron_style.steps.blocks.model.prefix_packing import Group, Row
from nemotron_style.steps.blocks.training import microbatch_plan
from nemotron_style.steps.blocks.training.microbatch_plan import (
    plan_microbatches,
    plan_sequences,
)


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


def rows_of(*lengths: int) -> list[Row]:
    return [Row([1] * length, [False] + [True] * (length - 1)) for length in lengths]


@pytest.mark.parametrize("most", [64, 100, 300, 5000])
def test_rows_of_samples_hold_each_once_within_the_limit_and_are_few(most: int) -> None:
    draw = random.Random(2)
    rows = rows_of(*(min(64, int(draw.lognormvariate(3, 0.8)) + 2) for _ in range(80)))
    plan = plan_sequences(rows, max_tokens=most)
    assert sorted(responses(plan)) == [(number, 0) for number in range(80)]
    sizes = [sum(len(rows[part.group].ids) for part in batch.parts) for batch in plan]
    assert max(sizes) <= most
    assert len(plan) <= sum(sizes) / most + 1
    assert most < 100 or max(sizes) - min(sizes) <= 0.1 * max(sizes)
    assert plan == plan_sequences(rows, max_tokens=most)
    for batch in plan:
        assert batch.pack(rows).tokens_BS.shape == (1, sum(batch.pack(rows).layout.lengths))


def test_a_sample_that_is_longer_has_a_row_of_its_own() -> None:
    plan = plan_sequences(rows_of(3, 20, 4), max_tokens=8)
    assert [[part.group for part in batch.parts] for batch in plan] == [[1], [2, 0]]


def test_samples_of_one_length_stand_side_by_side() -> None:
    (batch,) = plan_sequences(rows_of(3, 5, 3, 4, 5), max_tokens=99)
    assert [part.group for part in batch.parts] == [1, 4, 3, 0, 2]


def test_ranks_have_as_many_rows_and_about_as_many_tokens(monkeypatch) -> None:
    draw = random.Random(3)
    rows = rows_of(*(draw.randrange(2, 60) for _ in range(50)))
    monkeypatch.setattr(microbatch_plan, "data_world", lambda: 3)
    shares = []
    for rank in range(3):
        monkeypatch.setattr(microbatch_plan, "data_rank", lambda rank=rank: rank)
        shares.append(plan_sequences(rows, max_tokens=200))
    assert len({len(share) for share in shares}) == 1
    assert sorted(chain(*map(responses, shares))) == [(number, 0) for number in range(50)]
    tokens = [sum(len(rows[group].ids) for group, _ in responses(share)) for share in shares]
    assert max(tokens) - min(tokens) < 0.05 * max(tokens)
    monkeypatch.setattr(microbatch_plan, "data_rank", lambda: 2)
    assert plan_sequences(rows[:2], max_tokens=200) == []


def test_a_group_of_one_response_may_be_a_sample() -> None:
    groups = [group(2, 3), group(4, 1)]
    (batch,) = plan_sequences(groups, max_tokens=20)
    packed = batch.pack(groups)
    assert packed.tokens_BS.tolist() == [[0, 0, 1, 1, 0, 0, 0, 0]]
    assert packed.positions_BS.tolist() == [[0, 1, 2, 3, 0, 1, 2, 3]]
    assert packed.label_tokens == 4
