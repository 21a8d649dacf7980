"""Which samples are kept, and the bounds of what choosing can do."""

from __future__ import annotations

import math
import random

import pytest

from nemotron_style.runtime.errors import StepFailed
from nemotron_style.steps.rs.actor.best_of_n import Choice, bound_kl, bound_win_rate, choose


def test_the_best_are_kept_best_first() -> None:
    assert choose([1.0, 3.0, 2.0, 3.5], 2).kept == (3, 1)
    assert choose([-1.0, -3.0], 1).kept == (0,)
    assert choose([2.0, 1.0], 2).kept == (0, 1)


def test_of_equals_the_earlier_is_kept_and_that_is_told() -> None:
    assert choose([1.0, 2.0, 2.0, 2.0], 2) == Choice((1, 2), tied=True)
    assert not choose([1.0, 2.0, 2.0, 0.0], 2).tied  # equal, and both kept
    assert not choose([1.0, 1.0], 2).tied  # nothing is left out


def test_what_has_no_score_is_never_kept() -> None:
    assert choose([None, 1.0, None], 2).kept == (1,)
    assert choose([None, None], 1) == choose([], 1)
    assert choose([], 1).kept == ()


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_no_number_has_no_rank(bad: float) -> None:
    with pytest.raises(StepFailed, match="no finite number"):
        choose([1.0, bad], 1)


@pytest.mark.parametrize("n", [1, 2, 4, 8, 64])
def test_bounds_of_the_best_of_n(n: int) -> None:
    assert bound_kl(n, 1) == pytest.approx(math.log(n) - (n - 1) / n, abs=5e-6)
    assert bound_win_rate(n, 1) == pytest.approx(n / (n + 1))
    assert bound_kl(n, n) == pytest.approx(0, abs=1e-9)
    assert bound_win_rate(n, n) == pytest.approx(0.5)


def test_the_bound_for_four_samples() -> None:
    assert bound_kl(4, 1) == pytest.approx(0.6363, abs=5e-5)


def test_keeping_more_can_do_less() -> None:
    bounds = [bound_kl(8, k) for k in range(1, 9)]
    assert bounds == sorted(bounds, reverse=True)
    assert all(bound <= math.log(8 / k) for k, bound in enumerate(bounds, start=1))


def test_bounds_of_more_kept_samples_are_those_of_a_draw() -> None:
    """Uniform scores, the best 3 of 8: how often one beats a fresh one, and a histogram's KL."""
    draw, n, k, bins = random.Random(1), 8, 3, 40
    counts, kept = [0] * bins, []
    for _ in range(60_000):
        scores = [draw.random() for _ in range(n)]
        kept += [scores[place] for place in choose(scores, k).kept]
    for score in kept:
        counts[int(score * bins)] += 1
    shares = [count / len(kept) for count in counts]
    kl = sum(share * math.log(share * bins) for share in shares if share)
    assert kl == pytest.approx(bound_kl(n, k), abs=0.01)
    assert sum(kept) / len(kept) == pytest.approx(bound_win_rate(n, k), abs=0.005)
