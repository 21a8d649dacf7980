"""A picture of a run: rewards, win rates, how far the policy moved, and how long it speaks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nemotron_style.steps.blocks.training.metric_plot import draw_metrics

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
    """Draw the lines of ``metrics.jsonl`` into ``plots/rlhf.png``; None without matplotlib."""
    return draw_metrics(lines, PANELS, run_dir / "plots" / "rlhf.png")
