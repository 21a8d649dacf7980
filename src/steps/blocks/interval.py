"""95% intervals for rates, and for the difference of two rates over the same samples.

Sources: Wilson, "Probable inference, the law of succession, and statistical inference" (1927);
Newcombe, "Improved confidence intervals for the difference between binomial proportions based on
paired data" (1998), method 10.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

Z = 1.959963984540054
"""The quantile of the normal distribution that leaves 2.5% above it."""


def wilson(hits: int, total: int) -> tuple[float, float]:
    """The score interval of ``hits / total``; (0, 1) when nothing was counted."""
    if total == 0:
        return 0.0, 1.0
    rate = hits / total
    spread = 1 + Z**2 / total
    centre = (rate + Z**2 / (2 * total)) / spread
    margin = Z * math.sqrt(rate * (1 - rate) / total + Z**2 / (4 * total**2)) / spread
    return max(0.0, centre - margin), min(1.0, centre + margin)


def paired_difference(before: Sequence[bool], after: Sequence[bool]) -> tuple[float, float]:
    """The interval of ``mean(after) - mean(before)``; entry i of both is the same question.

    It is Wilson's interval of each rate, narrowed by how far the two agree sample by sample.
    """
    total = len(before)
    assert len(after) == total > 0
    first, second = sum(before), sum(after)
    first_low, first_high = wilson(first, total)
    second_low, second_high = wilson(second, total)
    p, q = first / total, second / total
    agreement = correlation(before, after)
    down, up = (q - second_low, first_high - p), (second_high - q, p - first_low)
    return q - p - _combine(*down, agreement), q - p + _combine(*up, agreement)


def correlation(before: Sequence[bool], after: Sequence[bool]) -> float:
    """The phi coefficient of two yes-no answers to the same questions; 0 where one is constant.

    A positive one has Newcombe's continuity correction.
    """
    pairs = list(zip(before, after, strict=True))
    both = sum(x and y for x, y in pairs)
    neither = sum(not x and not y for x, y in pairs)
    gained = sum(not x and y for x, y in pairs)
    lost = sum(x and not y for x, y in pairs)
    scale = (both + lost) * (gained + neither) * (both + gained) * (lost + neither)
    if scale == 0:
        return 0.0
    surplus = both * neither - lost * gained
    if surplus > 0:
        surplus = max(surplus - len(pairs) / 2, 0)
    return surplus / math.sqrt(scale)


def _combine(first: float, second: float, agreement: float) -> float:
    return math.sqrt(max(0.0, first**2 + second**2 - 2 * agreement * first * second))
