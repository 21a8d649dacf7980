"""How well predictions go with what was rated: by value, by rank, and pair by pair."""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right, insort
from collections.abc import Mapping, Sequence
from itertools import groupby
from statistics import StatisticsError, correlation, fmean

from nemotron_style.steps.blocks.reward.config import RewardConfig
from nemotron_style.steps.blocks.reward.types import RewardScore
from nemotron_style.steps.reward.regression.row import EncodedRow

Points = list[tuple[float, float]]
"""What was rated and what was predicted, in the units of the data."""


def points_of(
    rows: Sequence[EncodedRow], scores: Sequence[Sequence[RewardScore]], names: Sequence[str]
) -> dict[str, Points]:
    """Rated and predicted values of each attribute that any row rates."""
    points = {
        name: [
            (row.ratings[name], texts[0].attributes[name])
            for row, texts in zip(rows, scores, strict=True)
            if name in row.ratings
        ]
        for name in names
    }
    return {name: values for name, values in points.items() if values}


def compute_metrics(
    rows: Sequence[EncodedRow], scores: Sequence[Sequence[RewardScore]], config: RewardConfig
) -> dict[str, float]:
    """``mse_<attribute>`` and so on of what is rated, and ``pair_accuracy`` of pairs.

    What is undefined (a correlation with a constant) is left out.
    """
    metrics: dict[str, float] = {}
    for attribute, points in points_of(rows, scores, config.outputs).items():
        for name, value in describe(points).items():
            if not math.isnan(value):
                metrics[f"{name}_{attribute}"] = value
    leads = [pair[0].score - pair[1].score for pair in scores if len(pair) == 2]
    if leads:
        metrics["pair_accuracy"] = fmean((lead > 0) + 0.5 * (lead == 0) for lead in leads)
    return metrics


def describe(points: Points) -> Mapping[str, float]:
    """Mean squared error, R^2, Pearson's and Spearman's correlation, pairwise accuracy."""
    true, predicted = zip(*points, strict=True)
    error = fmean((one - other) ** 2 for one, other in points)
    mean = fmean(true)
    variance = fmean((value - mean) ** 2 for value in true)
    return {
        "mse": error,
        "r2": 1 - error / variance if variance else math.nan,
        "pearson": correlate(true, predicted),
        "spearman": correlate(rank(true), rank(predicted)),
        "pairwise_accuracy": compare_pairs(points),
    }


def correlate(one: Sequence[float], other: Sequence[float]) -> float:
    """Pearson's correlation; NaN where a side is constant."""
    try:
        return correlation(one, other)
    except StatisticsError:
        return math.nan


def rank(values: Sequence[float]) -> list[float]:
    """Ranks from 0; values that are equal share the mean of theirs."""
    ordered = sorted(values)
    return [(bisect_left(ordered, v) + bisect_right(ordered, v) - 1) / 2 for v in values]


def compare_pairs(points: Points) -> float:
    """Of all pairs that were rated differently, the share predicted in that order.

    Equal predictions count half; NaN where all were rated alike.
    """
    below: list[float] = []
    right, pairs = 0.0, 0
    for _, group in groupby(sorted(points), key=lambda point: point[0]):
        predicted = [value for _, value in group]
        right += sum(bisect_left(below, v) + bisect_right(below, v) for v in predicted) / 2
        pairs += len(below) * len(predicted)
        for value in predicted:
            insort(below, value)
    return right / pairs if pairs else math.nan
