"""Correlations of two columns of numbers, by value and by rank; NaN where a column is constant."""

from __future__ import annotations

import math
from collections.abc import Sequence


def pearson(first: Sequence[float], second: Sequence[float]) -> float:
    """Pearson's correlation of the values."""
    from scipy import stats  # takes seconds to import

    return float(stats.pearsonr(first, second).statistic) if _vary(first, second) else math.nan


def spearman(first: Sequence[float], second: Sequence[float]) -> float:
    """Spearman's correlation of the ranks; equal values share the mean of their ranks."""
    from scipy import stats

    return float(stats.spearmanr(first, second).statistic) if _vary(first, second) else math.nan


def _vary(*columns: Sequence[float]) -> bool:
    # scipy answers NaN for a constant column too, but with a warning each time
    return all(len(set(column)) > 1 for column in columns)
