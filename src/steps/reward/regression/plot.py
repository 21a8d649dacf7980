"""Plots: the losses over steps; predicted against rated values, a panel for each attribute."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nemotron_style.steps.blocks.stats.metric_plot import draw_panels
from nemotron_style.steps.reward.regression.metrics import Points, describe

PANELS = {
    "loss": {
        "train_loss": "both",
        "train_regression_loss": "ratings",
        "train_pair_loss": "pairs",
    },
    "accuracy on held-out pairs": {"validation_pair_accuracy": "pairs"},
    "gradient norm": {"grad_norm": "before clipping"},
    "learning rate": {"lr": "learning rate"},
}


def draw(points: Mapping[str, Points], run_dir: Path) -> Path | None:
    """Draw ``plots/regression.png``; None where matplotlib is missing or nothing was rated."""

    def scatter(axes: Any, name: str) -> None:
        true, predicted = zip(*points[name], strict=True)
        ends = [min(true), max(true)]
        axes.plot(ends, ends, color="grey", linewidth=1)
        axes.scatter(true, predicted, s=6, alpha=0.3)
        fit = describe(points[name])
        title = f"{name}: R² {fit['r2']:.3f}, Spearman {fit['spearman']:.3f}"
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("rated")
        axes.set_ylabel("predicted")

    if not points:
        return None
    return draw_panels(run_dir / "plots" / "regression.png", dict.fromkeys(points, scatter))
