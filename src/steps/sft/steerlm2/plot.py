"""A picture of a run: distance, probability mass and effective sample size over steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nemotron_style.steps.blocks.stats.metric_plot import draw_metrics

TITLES = {
    "distance": "distance KL(w || b)",
    "mean_drift": "mean log Q - log Q' (nats)",
    "effective_sample_size": "effective sample size",
}
PANELS = {
    title: {f"{part}_{name}": part for part in ("train", "validation")}
    for name, title in TITLES.items()
}


def draw(lines: Sequence[Mapping[str, Any]], run_dir: Path) -> Path | None:
    """Draw the lines of ``metrics.jsonl`` into ``plots/steerlm2.png``; None without matplotlib."""
    return draw_metrics(lines, PANELS, run_dir / "plots" / "steerlm2.png")
