"""Rates and intervals of eval/steerability, against published and hand-counted values."""

from __future__ import annotations

import random

import pytest

from nemotron_style.steps.blocks.stats.confidence_interval import (
    paired_difference_interval,
    phi_coefficient,
    wilson_interval,
)
from nemotron_style.steps.eval.steerability.metrics import (
    JOINT,
    Outcome,
    compare_in_words,
    rate_differences,
    rates_by_attribute,
    rates_by_label,
)
from nemotron_style.steps.eval.steerability.samples import sample_table


def test_wilson_against_published_values() -> None:
    # Newcombe 1998, "Two-sided confidence intervals for the single proportion", table I, method 3
    assert wilson_interval(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson_interval(15, 148) == pytest.approx((0.0624, 0.1605), abs=5e-5)
    assert wilson_interval(0, 20) == pytest.approx((0.0, 0.1611), abs=5e-5)
    assert wilson_interval(1, 29) == pytest.approx((0.0061, 0.1718), abs=5e-5)
    assert wilson_interval(0, 0) == (0.0, 1.0)


@pytest.mark.parametrize(
    ("both", "gained", "lost", "neither", "expected"),
    [
        (36, 12, 2, 0, (0.0569, 0.3404)),  # Newcombe 1998, paired data, method 10
        (30, 0, 0, 0, (-0.1135, 0.1135)),  # nothing but agreement: Wilson's interval of 30 of 30
    ],
)
def test_paired_difference_against_known_values(
    both: int, gained: int, lost: int, neither: int, expected: tuple[float, float]
) -> None:
    before = [True] * both + [False] * gained + [True] * lost + [False] * neither
    after = [True] * both + [True] * gained + [False] * lost + [False] * neither
    assert paired_difference_interval(before, after) == pytest.approx(expected, abs=2e-3)


def test_paired_interval_covers_the_true_difference() -> None:
    draw = random.Random(5)
    covered = 0
    for _ in range(400):
        before = [draw.random() < 0.4 for _ in range(200)]
        after = [hit or draw.random() < 0.2 for hit in before]  # 0.4 -> 0.52
        low, high = paired_difference_interval(before, after)
        covered += low <= 0.12 <= high
    assert 0.92 <= covered / 400 <= 0.99


def test_pairs_that_agree_give_a_narrower_interval() -> None:
    before = [i % 2 == 0 for i in range(400)]
    same = [hit or i % 20 == 1 for i, hit in enumerate(before)]
    shuffled = same[1:] + same[:1]
    assert phi_coefficient(before, same) > 0.8
    assert _width(paired_difference_interval(before, same)) < 0.5 * _width(
        paired_difference_interval(before, shuffled)
    )


def _width(interval: tuple[float, float]) -> float:
    return interval[1] - interval[0]


def outcome(label: str, wanted: dict[str, int], got: dict[str, int] | None) -> Outcome:
    return Outcome(label, wanted, None if got is None else "text", got)


WANTED = {"helpfulness": 3, "verbosity": 1}
OUTCOMES = [
    outcome("a", WANTED, {"helpfulness": 3, "verbosity": 1}),
    outcome("a", WANTED, {"helpfulness": 3, "verbosity": 2}),
    outcome("b", {"helpfulness": 0}, {"helpfulness": 0, "verbosity": 4}),
    outcome("b", {"helpfulness": 0}, None),
]


def test_rates_one_by_one_and_jointly() -> None:
    found = rates_by_attribute(OUTCOMES)
    assert {name: (rate["hits"], rate["total"]) for name, rate in found.items()} == {
        JOINT: (2, 4),
        "helpfulness": (3, 4),
        "verbosity": (1, 2),  # asked for in two of four
    }
    by_label = rates_by_label(OUTCOMES)
    assert {label: rate["rate"] for label, rate in by_label.items()} == {"a": 0.5, "b": 0.5}


def test_an_unfinished_response_misses_everything() -> None:
    assert not OUTCOMES[3].hit("helpfulness")
    assert not OUTCOMES[3].hit(JOINT)


def test_differences_are_paired() -> None:
    better = [OUTCOMES[0], OUTCOMES[0], *OUTCOMES[2:]]
    change = rate_differences(OUTCOMES, better)
    assert change[JOINT]["difference"] == pytest.approx(0.25)
    assert change["helpfulness"]["difference"] == 0
    assert change["verbosity"]["difference"] == pytest.approx(0.5)
    assert change[JOINT]["low"] < 0.25 < change[JOINT]["high"]


@pytest.mark.parametrize(
    ("low", "change", "high", "told"),
    [
        (0.214, 0.241, 0.268, "better than the baseline: +24.1"),
        (-0.05, -0.03, -0.01, "worse than the baseline: -3.0"),
        (-0.01, 0.01, 0.03, "neither better nor worse than the baseline"),
        (0.0, 0.0, 0.0, "neither better nor worse"),
    ],
)
def test_better_or_worse_is_said_where_the_interval_says_so(
    low: float, change: float, high: float, told: str
) -> None:
    assert told in compare_in_words({"difference": change, "low": low, "high": high})


def test_a_table_survives_what_responses_contain() -> None:
    said = {"value": "a | b\nc", "attributes": {"h": 1}, "hit": False}
    rows = [
        {"label": "h:1", "turns": [{"from": "User", "value": "q"}], "model": said},
        {"label": "h:0", "turns": [{"from": "User", "value": "q"}],
         "model": {"value": None, "attributes": None, "hit": False}},
    ]  # fmt: skip
    lines = sample_table(rows, slots=["model"], shown=2).splitlines()
    assert lines[2] == "| label | prompt | model |"
    assert lines[4] == "| h:0 | q | ✗ (did not finish) |"
    assert lines[5] == "| h:1 | q | ✗ a \\| b c (h:1) |"
    assert len(sample_table(rows * 5, slots=["model"], shown=2).splitlines()) == 4 + 4
