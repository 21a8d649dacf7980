"""Intervals of clustered scores: closed forms, and how often they hold the truth."""

from __future__ import annotations

import random

import pytest

from nemotron_style.steps.blocks.interval import clustered, effective_size, wilson


def test_clusters_of_one_are_wilsons() -> None:
    scores = [[1.0]] * 30 + [[0.0]] * 20
    # the variance between clusters has n - 1 below it
    assert effective_size(scores) == pytest.approx(49)
    assert clustered(scores) == pytest.approx(wilson(0.6 * 49, 49))


def test_equal_scores_in_a_cluster_count_once() -> None:
    once = [[1.0]] * 30 + [[0.0]] * 20
    thrice = [scores * 3 for scores in once]
    assert effective_size(thrice) == pytest.approx(effective_size(once))
    assert clustered(thrice) == pytest.approx(clustered(once))


def test_clusters_that_cancel_count_every_sample_and_no_more() -> None:
    assert effective_size([[1.0, 0.0]] * 25) == 50
    assert clustered([[1.0, 0.0]] * 25) == pytest.approx(wilson(25, 50))


def test_ties_are_never_worth_more_than_coins() -> None:
    assert clustered([[0.5]] * 40) == pytest.approx(wilson(20, 40))


def test_what_the_data_cannot_tell_is_taken_as_dependent() -> None:
    assert clustered([[1.0] * 4] * 10) == pytest.approx(wilson(10, 10))
    assert clustered([[0.0] * 4] * 10) == pytest.approx(wilson(0, 10))
    assert clustered([[1.0, 0.0, 1.0]]) == pytest.approx(wilson(2 / 3, 1))
    assert clustered([]) == (0.0, 1.0)


@pytest.mark.parametrize("rate", [0.5, 0.65, 0.9])
def test_it_holds_the_truth_where_wilsons_does_not(rate: float) -> None:
    draw, rounds, held, naive = random.Random(7), 500, 0, 0
    for _ in range(rounds):
        clusters = []
        for _ in range(80):
            own = draw.betavariate(rate, 1 - rate)  # half of the variance lies between prompts
            clusters.append([float(draw.random() < own) for _ in range(4)])
        low, high = clustered(clusters)
        held += low <= rate <= high
        low, high = wilson(sum(map(sum, clusters)), 320)
        naive += low <= rate <= high
    assert 0.92 <= held / rounds <= 0.98
    assert naive / rounds < 0.85
