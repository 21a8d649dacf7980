"""Correlations against values by hand, and columns that do not vary."""

from __future__ import annotations

import math
import warnings

import pytest

from nemotron_style.steps.blocks.stats.correlation import pearson, spearman


def test_a_line_and_a_curve() -> None:
    assert pearson([1, 2, 3], [2, 4, 6]) == pytest.approx(1)
    assert pearson([0, 1, 2], [0, 0, 3]) == pytest.approx(3 / math.sqrt(2 * 6))
    assert spearman([1, 2, 3, 4], [1, 8, 27, 64]) == pytest.approx(1)
    assert spearman([1, 2, 3], [3, 2, 1]) == pytest.approx(-1)


def test_equal_values_share_their_rank() -> None:
    assert spearman([1, 1, 2], [1, 2, 3]) == pytest.approx(pearson([1.5, 1.5, 3], [1, 2, 3]))


@pytest.mark.parametrize(
    "columns", [([1.0, 1.0], [1.0, 2.0]), ([1.0, 2.0], [3.3, 3.3]), ([1], [1])]
)
def test_a_constant_column_has_no_correlation(columns: tuple[list[float], list[float]]) -> None:
    with warnings.catch_warnings(action="error"):
        assert math.isnan(pearson(*columns))
        assert math.isnan(spearman(*columns))
