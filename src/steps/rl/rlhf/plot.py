"""A picture of a run: rewards, win rates, how far the policy moved, and how long it speaks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nemotron_style.steps.blocks.training.metric_plot import series

PANELS = {
    "reward": {"reward": "all samples", "validation/total_reward/mean": "held-out prompts"},
    "win rate against the start": {
        "validation/judge_win_rate": "judge",
        "validation/truth_win_rate": "truth",
    },
    "KL to the start (nats a token)": {"hacking/kl_to_start": "estimate"},
    "tokens of an answer": {
        "mean_gen_tokens_per_sample": "all samples",
        "validation/tokens": "held-out prompts",
    },
}


def draw(lines: Sequence[Mapping[str, Any]], run_dir: Path) -> Path | None:
    """Draw the lines of ``metrics.jsonl`` into ``plots/rlhf.png``; None without matplotlib.

    It stands in the run and not in the model: a picture must not change what a model is.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        return None
    figure = Figure(figsize=(15, 3.5), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(PANELS))
    for axes, (title, names) in zip(panels, PANELS.items(), strict=True):
        for name, label in names.items():
            steps, values = series(lines, name)
            marker = "o" if name.startswith("validation") else None
            axes.plot(steps, values, label=label, marker=marker)
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("step")
        axes.legend(frameon=False, fontsize=8)
    path = run_dir / "plots" / "rlhf.png"
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, dpi=110)
    return path
