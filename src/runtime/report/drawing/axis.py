"""Axes of figures: round numbers that span some values, and how they are written."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

MOST_DIGITS = 4
"""Behind the point of a mark; more would not fit beside a chart."""
_ROUND = (1.0, 2.0, 2.5, 5.0, 10.0)


@dataclass(frozen=True)
class Axis:
    """A scale from ``low`` to ``high`` with marks at round numbers."""

    low: float
    high: float
    ticks: tuple[float, ...]
    step: float

    def place(self, value: float, start: float, end: float) -> float:
        """Where a value lies between the pixels of the axis's two ends."""
        return start + (value - self.low) / (self.high - self.low) * (end - start)

    def write(self, value: float) -> str:
        """A mark as it is written: only as many digits as tell it from the next one."""
        exponent = _thousands(max(abs(self.low), abs(self.high)))
        scaled, step = value / 1000**exponent, self.step / 1000**exponent
        digits = max(0, -math.floor(math.log10(step) + 1e-9))
        # A step of 0.25 needs a digit more than its size says.
        digits += not math.isclose(step * 10**digits, round(step * 10**digits), abs_tol=1e-6)
        if digits > MOST_DIGITS:
            return self._write_fine(value)
        scaled = round(scaled, digits) + 0.0  # no minus before a zero
        return f"{scaled:.{digits}f}" + " kMGT"[exponent].strip()

    def _write_fine(self, value: float) -> str:
        """A mark of a very fine scale: ``2e-4``, or ``1+2e-7`` where the values lie around 1."""
        base = float(round(self.low))
        if abs(value - base) < self.step / 2:
            return f"{base:g}"
        mantissa, _, power = f"{value - base:{'+' if base else ''}.2g}".partition("e")
        if not power:
            mantissa, _, power = f"{value - base:{'+' if base else ''}.1e}".partition("e")
        return f"{f'{base:g}' if base else ''}{mantissa.removesuffix('.0')}e{int(power)}"


def make_axis(values: Iterable[float], *, most: int = 5, whole: bool = False) -> Axis:
    """An axis over finite ``values`` with at most about ``most`` marks; it ends at round numbers.

    ``whole``: the values count something, and no mark stands between two counts.
    """
    known = [value for value in values if math.isfinite(value)]
    low, high = min(known, default=0.0), max(known, default=1.0)
    if low == high:
        reach = abs(low) / 10 or 1.0
        low, high = (low - 1, high + 1) if whole else (low - reach, high + reach)
    step = _round_step((high - low) / most)
    step = max(1.0, math.ceil(step)) if whole else step
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    ticks = tuple(at * step for at in range(first, last + 1))
    return Axis(ticks[0], ticks[-1], ticks, step)


def fit_axis(values: Iterable[float], *, most: int = 6) -> Axis:
    """An axis of counts that ends where the values end, with marks at round numbers between."""
    known = [value for value in values if math.isfinite(value)]
    outer = make_axis(known, most=most, whole=True)
    low, high = min(known, default=0.0), max(known, default=1.0)
    if low == high:
        return outer
    inside = tuple(tick for tick in outer.ticks if low <= tick <= high)
    return Axis(low, high, inside, outer.step)


def _round_step(step: float) -> float:
    scale = 10.0 ** math.floor(math.log10(step))
    return next(each * scale for each in _ROUND if each * scale >= step * (1 - 1e-9))


def _thousands(size: float) -> int:
    return min(int(math.log10(size)) // 3, 4) if size >= 1e4 else 0
