"""A picture of a reward model: what it says against what was rated, an attribute a panel."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from nemotron_style.steps.reward.regression.metrics import Points, describe


def draw(points: Mapping[str, Points], run_dir: Path) -> Path | None:
    """Draw ``plots/regression.png``; None where matplotlib is missing or nothing was rated.

    It stands in the run and not in the model: a picture must not change what a model is.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        return None
    if not points:
        return None
    figure = Figure(figsize=(4 * len(points), 3.8), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(points), squeeze=False)[0]
    for axes, (name, values) in zip(panels, points.items(), strict=True):
        true, predicted = zip(*values, strict=True)
        ends = [min(true), max(true)]
        axes.plot(ends, ends, color="grey", linewidth=1)
        axes.scatter(true, predicted, s=6, alpha=0.3)
        found = describe(values)
        axes.set_title(
            f"{name}: R² {found['r2']:.3f}, Spearman {found['spearman']:.3f}", fontsize=10
        )
        axes.set_xlabel("rated")
        axes.set_ylabel("predicted")
    path = run_dir / "plots" / "regression.png"
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, dpi=110)
    return path
