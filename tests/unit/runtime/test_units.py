"""Numbers, durations, sizes and dates as people read them."""

from __future__ import annotations

import time

import pytest

from nemotron_style.runtime.units import (
    DAY,
    format_age,
    format_clock,
    format_duration,
    format_number,
    format_rate,
    format_size,
    format_time,
)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.449679, "0.4497"),
        (8825.07, "8825"),
        (12760.34, "12.76k"),
        (-20000.0, "-20k"),
        (999_960.0, "1M"),
        (2.5e9, "2.5G"),
        (1e-5, "1e-05"),
        (1e17, "1e+17"),
        (0.0, "0"),
        (57600, "57600"),
        ("nan", "nan"),
        (True, "True"),
    ],
)
def test_a_number_has_four_significant_digits_and_a_count_all(value: object, text: str) -> None:
    assert format_number(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.04, "0.0s"),
        (9.94, "9.9s"),
        (9.96, "10s"),
        (59.6, "1m"),
        (80, "1m 20s"),
        (3660, "1h 1m"),
        (3725, "1h 2m"),
        (90_000, "1d 1h"),
    ],
)
def test_a_duration_has_two_units(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


@pytest.mark.parametrize(
    ("size", "text"), [(695, "695 B"), (999.6, "1 kB"), (3_400_000, "3.4 MB"), (4e15, "4e+03 TB")]
)
def test_a_size_is_decimal(size: float, text: str) -> None:
    assert format_size(size) == text


def test_an_age_is_counted_from_now_and_a_date_after_a_month() -> None:
    now = 1_700_000_000.0
    ages = [3, 100, 2 * 3600 + 5, 3 * DAY]
    texts = [format_age(now - age, now=now) for age in ages]
    assert texts == ["just now", "1m ago", "2h ago", "3d ago"]
    assert format_age(now - 40 * DAY, now=now) == format_time(now - 40 * DAY)[:10]


def test_slow_work_is_told_by_the_unit() -> None:
    assert format_rate(2.5) == "2.5/s"
    assert format_rate(0.25) == "4.0s each"


def test_a_clock_of_today_needs_no_date() -> None:
    now = time.time()
    assert format_clock(now) == format_time(now)[11:16]
    assert format_clock(now - 3 * 86400) == format_time(now - 3 * 86400)[:16]
