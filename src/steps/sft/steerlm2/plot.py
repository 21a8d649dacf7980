"""A picture of a run: distance, probability mass and effective sample size over steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nemotron_style.steps.blocks.training.metric_plot import series

PANELS = (
    ("distance", "distance KL(w || b)"),
    ("mean_drift", "mean log Q - log Q' (nats)"),
    ("effective_sample_size", "effective sample size"),
)


def draw(lines: Sequence[Mapping[str, Any]], run_dir: Path) -> Path | None:
    """Draw the lines of ``metrics.jsonl`` into ``plots/steerlm2.png``.

    None where matplotlib is not installed.

    It stands in the run and not in the model: a picture must not change what a model is.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        return None
    figure = Figure(figsize=(12, 3.5), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, (name, title) in zip(figure.subplots(1, len(PANELS)), PANELS, strict=True):
        for part, style in (("train", {"alpha": 0.5}), ("validation", {"marker": "o"})):
            steps, values = series(lines, f"{part}_{name}")
            axes.plot(steps, values, label=part, **style)
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("step")
        axes.legend(frameon=False, fontsize=8)
    path = run_dir / "plots" / "steerlm2.png"
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, dpi=110)
    return path
