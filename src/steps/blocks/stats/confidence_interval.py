"""95% intervals for rates, for rates of clustered samples, and for the difference of two rates.

Sources: Wilson, "Probable inference, the law of succession, and statistical inference" (1927);
Newcombe, "Improved confidence intervals for the difference between binomial proportions based on
paired data" (1998), method 10; Franco, Little, Louis and Slud, "Comparative study of confidence
intervals for proportions in complex sample surveys" (2019); Korn and Graubard (1998).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from scipy.special import stdtrit

Z = 1.959963984540054
"""The quantile of the normal distribution that leaves 2.5% above it."""


def wilson_interval(hits: float, total: float) -> tuple[float, float]:
    """Wilson's score interval of the rate ``hits / total``; (0, 1) for a total of 0."""
    # scipy.stats.binomtest has this interval for whole numbers alone; effective sizes are not.
    if total == 0:
        return 0.0, 1.0
    rate = hits / total
    spread = 1 + Z**2 / total
    centre = (rate + Z**2 / (2 * total)) / spread
    margin = Z * math.sqrt(rate * (1 - rate) / total + Z**2 / (4 * total**2)) / spread
    return max(0.0, centre - margin), min(1.0, centre + margin)


def clustered_interval(clusters: Sequence[Sequence[float]]) -> tuple[float, float]:
    """The interval of the mean of scores from 0 to 1; (0, 1) without a cluster.

    Scores of one cluster (the samples of a prompt) may depend on each other, those of different
    clusters do not. It is Wilson's interval for :func:`effective_size` samples.
    """
    if not clusters:
        return 0.0, 1.0
    size = effective_size(clusters)
    rate = sum(map(sum, clusters)) / sum(map(len, clusters))
    return wilson_interval(rate * size, size)


def effective_size(clusters: Sequence[Sequence[float]]) -> float:
    """The number of independent samples that tell as much as ``clusters`` of scores from 0 to 1.

    ``p (1 - p) / v * (z / t)^2``, where ``v`` is the variance of the mean between clusters and
    ``t`` Student's quantile. More than the number of samples where many scores are a half, because
    these vary less than coins.
    """
    count, total = len(clusters), sum(map(len, clusters))
    rate = sum(map(sum, clusters)) / total
    if count == 1 or rate in (0.0, 1.0):
        return float(count)  # nothing shows how scores of a cluster depend on each other: fully
    between = sum((sum(scores) - rate * len(scores)) ** 2 for scores in clusters)
    within = sum((score - rate) ** 2 for scores in clusters for score in scores)
    # Clusters may cancel by chance: v is at least that of independent samples, and at least that
    # of a single sample in doubt, which is all that is left when every score is a half.
    variance = max(between * count / (count - 1), within, 1.0) / total**2
    # Few clusters estimate v badly: widen as Student's distribution widens the normal one.
    return rate * (1 - rate) / variance * (Z / t_quantile(count - 1)) ** 2


def t_quantile(freedom: int) -> float:
    """The quantile of Student's t that leaves 2.5% above it, for ``freedom`` degrees of freedom."""
    # What scipy.stats.t.ppf calls; importing scipy.stats takes four times as long.
    return float(stdtrit(freedom, 0.975))


def paired_difference_interval(
    before: Sequence[bool], after: Sequence[bool]
) -> tuple[float, float]:
    """The interval of ``mean(after) - mean(before)``, where entry i of both is the same question.

    It combines Wilson's intervals of both rates; the more the answers agree, the narrower it is.
    """
    total = len(before)
    assert len(after) == total > 0
    p, q = sum(before) / total, sum(after) / total
    p_low, p_high = wilson_interval(sum(before), total)
    q_low, q_high = wilson_interval(sum(after), total)
    phi = phi_coefficient(before, after)
    below = _combine(q - q_low, p_high - p, phi)
    above = _combine(q_high - q, p - p_low, phi)
    return q - p - below, q - p + above


def phi_coefficient(before: Sequence[bool], after: Sequence[bool]) -> float:
    """The correlation of two yes-no answers to the same questions; 0 where one is constant.

    A positive one has Newcombe's continuity correction, which no library offers.
    """
    pairs = list(zip(map(bool, before), map(bool, after), strict=True))
    both, neither = pairs.count((True, True)), pairs.count((False, False))
    gained, lost = pairs.count((False, True)), pairs.count((True, False))
    scale = (both + lost) * (gained + neither) * (both + gained) * (lost + neither)
    if scale == 0:
        return 0.0
    surplus = both * neither - lost * gained
    if surplus > 0:
        surplus = max(surplus - len(pairs) / 2, 0)
    return surplus / math.sqrt(scale)


def _combine(first: float, second: float, phi: float) -> float:
    # Rounding may leave a difference just below 0 when both margins agree fully.
    return math.sqrt(max(0.0, first**2 + second**2 - 2 * phi * first * second))
