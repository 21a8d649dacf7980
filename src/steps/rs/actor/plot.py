"""A picture of a run: rewards, the held-out ones apart, and how far the policy moved."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nemotron_style.steps.blocks.training.metric_plot import draw_metrics

PANELS = {
    "reward": {
        "reward_mean": "all samples",
        "reward_kept_mean": "kept",
        "validation_reward_mean": "held-out prompts",
    },
    "KL to the start (nats a response)": {
        "kl_to_start": "estimate",
        "bound_kl": "bound of one choice",
    },
    "tokens of a response": {"response_tokens_mean": "all samples", "kept_tokens_mean": "kept"},
}


def draw(lines: Sequence[Mapping[str, Any]], run_dir: Path) -> Path | None:
    """Draw the lines of ``metrics.jsonl`` into ``plots/rs.png``; None without matplotlib."""
    return draw_metrics(lines, PANELS, run_dir / "plots" / "rs.png")
