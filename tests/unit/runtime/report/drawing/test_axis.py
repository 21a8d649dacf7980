"""Axes end at round numbers that enclose every value."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nemotron_style.runtime.report.drawing.axis import fit_axis, make_axis

NUMBERS = st.floats(-1e9, 1e9).filter(lambda value: value == 0 or abs(value) > 1e-9)


@given(st.lists(NUMBERS, min_size=1, max_size=5))
def test_an_axis_encloses_its_values_and_has_few_marks(values):
    axis = make_axis(values)
    reach = axis.high - axis.low
    assert axis.low - 1e-6 * reach <= min(values)
    assert max(values) <= axis.high + 1e-6 * reach
    assert 2 <= len(axis.ticks) <= 9


@pytest.mark.parametrize(
    ("values", "marks"),
    [
        ([0.0, 1.0], ["0.0", "0.2", "0.4", "0.6", "0.8", "1.0"]),
        ([0.31, 0.62], ["0.3", "0.4", "0.5", "0.6", "0.7"]),
        ([-0.04, 0.05], ["-0.04", "-0.02", "0.00", "0.02", "0.04", "0.06"]),
        ([12_000.0, 30_500.0], ["10k", "15k", "20k", "25k", "30k", "35k"]),
        ([3.0, 3.0], ["2.6", "2.8", "3.0", "3.2", "3.4"]),
        ([0.0, 0.0002], ["0", "5e-5", "1e-4", "1.5e-4", "2e-4"]),
        ([-4e-9, 4e-9], ["-4e-9", "-2e-9", "0", "2e-9", "4e-9"]),
        ([1.0, 1.0000004], ["1", "1+1e-7", "1+2e-7", "1+3e-7", "1+4e-7"]),
        ([], ["0.0", "0.2", "0.4", "0.6", "0.8", "1.0"]),
        ([float("nan"), 1.0, 2.0], ["1.0", "1.2", "1.4", "1.6", "1.8", "2.0"]),
    ],
)
def test_marks_are_written_with_the_digits_that_tell_them_apart(values, marks):
    axis = make_axis(values)
    assert [axis.write(tick) for tick in axis.ticks] == marks


def test_no_mark_stands_between_two_counts():
    assert [make_axis([1, 3], whole=True).write(t) for t in (1, 2, 3)] == ["1", "2", "3"]
    axis = fit_axis([1, 24])
    assert (axis.low, axis.high) == (1, 24)
    assert [axis.write(tick) for tick in axis.ticks] == ["5", "10", "15", "20"]
