"""95% intervals for rates, for rates of clustered samples, and for the difference of two rates.

Sources: Wilson, "Probable inference, the law of succession, and statistical inference" (1927);
Newcombe, "Improved confidence intervals for the difference between binomial proportions based on
paired data" (1998), method 10; for clusters, Franco, Little, Louis and Slud, "Comparative study of
confidence intervals for proportions in complex sample surveys" (2019): Wilson's interval of the
effective sample size, which Korn and Graubard (1998) lower where clusters are few.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

Z = 1.959963984540054
"""The quantile of the normal distribution that leaves 2.5% above it."""


def wilson(hits: float, total: float) -> tuple[float, float]:
    """The score interval of ``hits / total``; (0, 1) when nothing was counted."""
    if total == 0:
        return 0.0, 1.0
    rate = hits / total
    spread = 1 + Z**2 / total
    centre = (rate + Z**2 / (2 * total)) / spread
    margin = Z * math.sqrt(rate * (1 - rate) / total + Z**2 / (4 * total**2)) / spread
    return max(0.0, centre - margin), min(1.0, centre + margin)


def effective_size(clusters: Sequence[Sequence[float]]) -> float:
    """How many independent samples tell as much as ``clusters`` of scores from 0 to 1 do.

    It is ``p (1 - p) / v`` with the variance ``v`` of the mean between clusters, times
    ``(z / t)^2`` because few clusters tell ``v`` badly. ``v`` is never less than that of as many
    independent samples with these scores, nor than if one sample were in doubt. Scores of a half
    vary less than coins, so with many of them it is more than the number of samples. Where all
    scores are 0, or 1, and for one cluster, a cluster counts as one sample.
    """
    total = sum(map(len, clusters))
    rate = sum(map(sum, clusters)) / total
    count = len(clusters)
    if count == 1 or rate in (0.0, 1.0):
        return float(count)
    between = sum((sum(scores) - rate * len(scores)) ** 2 for scores in clusters)
    alone = sum((score - rate) ** 2 for scores in clusters for score in scores)
    variance = max(between * count / (count - 1), alone, 1.0) / total**2
    return rate * (1 - rate) / variance * (Z / student(count - 1)) ** 2


def student(freedom: int) -> float:
    """Student's quantile that leaves 2.5% above it: Z and two terms of its expansion in 1 / n.

    Source: Abramowitz and Stegun, 26.7.5. From 5 degrees of freedom on it is right to 1%.
    """
    first = (Z**3 + Z) / 4
    second = (5 * Z**5 + 16 * Z**3 + 3 * Z) / 96
    return Z + first / freedom + second / freedom**2


def clustered(clusters: Sequence[Sequence[float]]) -> tuple[float, float]:
    """The interval of the mean of scores from 0 to 1 that come in ``clusters``.

    Scores of one cluster may depend on each other, those of different ones do not; none is empty.
    (0, 1) when there is none.
    """
    if not clusters:
        return 0.0, 1.0
    size = effective_size(clusters)
    rate = sum(map(sum, clusters)) / sum(map(len, clusters))
    return wilson(rate * size, size)


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
