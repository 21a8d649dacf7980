"""Intervals of clustered scores: closed forms, and how often they hold the truth."""

from __future__ import annotations

import random

import pytest
from scipy.stats import binomtest

from nemotron_style.steps.blocks.stats.confidence_interval import (
    Z,
    clustered_interval,
    effective_size,
    t_quantile,
    wilson_interval,
)


@pytest.mark.parametrize(
    ("freedom", "known"),
    [(1, 12.7062), (2, 4.3027), (5, 2.5706), (10, 2.2281), (23, 2.0687), (60, 2.0003), (10**6, Z)],
)
def test_students_quantile_against_tables(freedom: int, known: float) -> None:
    assert t_quantile(freedom) == pytest.approx(known, abs=5e-5)


@pytest.mark.parametrize(("hits", "total"), [(0, 20), (1, 29), (81, 263), (148, 148)])
def test_wilsons_interval_is_that_of_scipy(hits: int, total: int) -> None:
    """Ours takes effective sizes too, which are no whole numbers."""
    known = binomtest(hits, total).proportion_ci(method="wilson")
    assert wilson_interval(hits, total) == pytest.approx((known.low, known.high))


def test_two_clusters_tell_next_to_nothing() -> None:
    """With one degree of freedom t is 12.71: forty scores are worth a fifth of a sample."""
    clusters = [[1.0] * 18 + [0.0] * 2, [1.0] * 12 + [0.0] * 8]
    # p (1 - p) = 0.1875; the sums lie 3 from their mean of 15, so v = (9 + 9) * 2 / 40^2
    assert effective_size(clusters) == pytest.approx(0.1875 / 0.0225 * (Z / 12.7062) ** 2)


def few(clusters: int) -> float:
    """What the small number of clusters costs."""
    return (Z / t_quantile(clusters - 1)) ** 2


def test_clusters_of_one_are_wilsons() -> None:
    scores = [[1.0]] * 30 + [[0.0]] * 20
    # the variance between clusters has n - 1 below it
    size = 49 * few(50)
    assert effective_size(scores) == pytest.approx(size)
    assert clustered_interval(scores) == pytest.approx(wilson_interval(0.6 * size, size))


def test_equal_scores_in_a_cluster_count_once() -> None:
    once = [[1.0]] * 30 + [[0.0]] * 20
    thrice = [scores * 3 for scores in once]
    assert effective_size(thrice) == pytest.approx(effective_size(once))
    assert clustered_interval(thrice) == pytest.approx(clustered_interval(once))


def test_clusters_that_cancel_count_every_sample_and_no_more() -> None:
    assert effective_size([[1.0, 0.0]] * 25) == pytest.approx(50 * few(25))


def test_ties_alone_leave_one_pair_in_doubt() -> None:
    low, high = clustered_interval([[0.5]] * 200)
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
        low, high = clustered_interval(clusters)
        held += low <= truth <= high
    assert 0.92 <= held / rounds <= 0.985


def test_what_the_data_cannot_tell_is_taken_as_dependent() -> None:
    assert clustered_interval([[1.0] * 4] * 10) == pytest.approx(wilson_interval(10, 10))
    assert clustered_interval([[0.0] * 4] * 10) == pytest.approx(wilson_interval(0, 10))
    assert clustered_interval([[1.0, 0.0, 1.0]]) == pytest.approx(wilson_interval(2 / 3, 1))
    assert clustered_interval([]) == (0.0, 1.0)


@pytest.mark.parametrize(("rate", "prompts"), [(0.5, 80), (0.65, 24), (0.65, 80), (0.9, 80)])
def test_it_holds_the_truth_where_wilsons_does_not(rate: float, prompts: int) -> None:
    draw, rounds, held, naive = random.Random(7), 500, 0, 0
    for _ in range(rounds):
        clusters = []
        for _ in range(prompts):
            own = draw.betavariate(rate, 1 - rate)  # half of the variance lies between prompts
            clusters.append([float(draw.random() < own) for _ in range(4)])
        low, high = clustered_interval(clusters)
        held += low <= rate <= high
        low, high = wilson_interval(sum(map(sum, clusters)), 4 * prompts)
        naive += low <= rate <= high
    assert 0.92 <= held / rounds <= 0.98
    assert naive / rounds < 0.85
