"""Intervals of clustered scores: closed forms, and how often they hold the truth."""

from __future__ import annotations

import random

import pytest

from nemotron_style.steps.blocks.stats.confidence_interval import (
    Z,
    clustered,
    effective_size,
    student,
    wilson,
)


@pytest.mark.parametrize(
    ("freedom", "known"), [(5, 2.5706), (10, 2.2281), (23, 2.0687), (60, 2.0003), (10**6, Z)]
)
def test_students_quantile_against_tables(freedom: int, known: float) -> None:
    assert student(freedom) == pytest.approx(known, rel=0.01)


def few(clusters: int) -> float:
    """What the small number of clusters costs."""
    return (Z / student(clusters - 1)) ** 2


def test_clusters_of_one_are_wilsons() -> None:
    scores = [[1.0]] * 30 + [[0.0]] * 20
    # the variance between clusters has n - 1 below it
    size = 49 * few(50)
    assert effective_size(scores) == pytest.approx(size)
    assert clustered(scores) == pytest.approx(wilson(0.6 * size, size))


def test_equal_scores_in_a_cluster_count_once() -> None:
    once = [[1.0]] * 30 + [[0.0]] * 20
    thrice = [scores * 3 for scores in once]
    assert effective_size(thrice) == pytest.approx(effective_size(once))
    assert clustered(thrice) == pytest.approx(clustered(once))


def test_clusters_that_cancel_count_every_sample_and_no_more() -> None:
    assert effective_size([[1.0, 0.0]] * 25) == pytest.approx(50 * few(25))


def test_ties_alone_leave_one_pair_in_doubt() -> None:
    low, high = clustered([[0.5]] * 200)
    assert (low, high) == pytest.approx((0.5 - 1.97 / 200, 0.5 + 1.97 / 200), abs=1e-4)


@pytest.mark.parametrize(
    ("prompts", "samples", "decided"), [(24, 12, 0.26), (300, 1, 0.3), (300, 1, 0.04)]
)
def test_it_holds_the_truth_among_many_ties(prompts: int, samples: int, decided: float) -> None:
    draw, rounds, held = random.Random(3), 500, 0
    truth = 0.5 + decided * 0.5 * 0.8  # of ten decided pairs nine are won
    for _ in range(rounds):
        clusters = []
        for _ in range(prompts):
            own = draw.betavariate(4 * decided, 4 * (1 - decided))
            drawn = [draw.random() < own for _ in range(samples)]
            clusters.append([float(draw.random() < 0.9) if hit else 0.5 for hit in drawn])
        low, high = clustered(clusters)
        held += low <= truth <= high
    assert 0.92 <= held / rounds <= 0.985


def test_what_the_data_cannot_tell_is_taken_as_dependent() -> None:
    assert clustered([[1.0] * 4] * 10) == pytest.approx(wilson(10, 10))
    assert clustered([[0.0] * 4] * 10) == pytest.approx(wilson(0, 10))
    assert clustered([[1.0, 0.0, 1.0]]) == pytest.approx(wilson(2 / 3, 1))
    assert clustered([]) == (0.0, 1.0)


@pytest.mark.parametrize(("rate", "prompts"), [(0.5, 80), (0.65, 24), (0.65, 80), (0.9, 80)])
def test_it_holds_the_truth_where_wilsons_does_not(rate: float, prompts: int) -> None:
    draw, rounds, held, naive = random.Random(7), 500, 0, 0
    for _ in range(rounds):
        clusters = []
        for _ in range(prompts):
            own = draw.betavariate(rate, 1 - rate)  # half of the variance lies between prompts
            clusters.append([float(draw.random() < own) for _ in range(4)])
        low, high = clustered(clusters)
        held += low <= rate <= high
        low, high = wilson(sum(map(sum, clusters)), 4 * prompts)
        naive += low <= rate <= high
    assert 0.92 <= held / rounds <= 0.98
    assert naive / rounds < 0.85
