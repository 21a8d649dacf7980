"""The picture of an evaluation: win rates with their intervals, and the lengths of the answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nemotron_style.steps.blocks.stats.metric_plot import draw_panels

BASELINE, MODEL = "#9a9a9a", "#4c9a2a"


def draw_arena(
    path: Path, *, rates: Mapping[str, Mapping[str, Any]], lengths: Mapping[str, Sequence[int]]
) -> None:
    """Write a PNG: a win rate a line with its 95% interval, and a histogram of lengths."""
    judged = {name: rate for name, rate in rates.items() if rate["pairs"]}

    def draw_rates(axes: Any, _: str) -> None:
        for row, rate in enumerate(reversed(judged.values())):
            below, above = rate["rate"] - rate["low"], rate["high"] - rate["rate"]
            margins = [[max(0.0, below)], [max(0.0, above)]]
            axes.errorbar(rate["rate"], row, xerr=margins, fmt="o", color=MODEL, markersize=5)
        labels = [f"{name} ({rate['pairs']})" for name, rate in judged.items()]
        axes.set_yticks(range(len(labels)), labels[::-1])
        axes.axvline(0.5, color=BASELINE, linewidth=1, linestyle="--")
        axes.set_xlim(0, 1)
        axes.set_ylim(-0.7, len(labels) - 0.3)
        axes.grid(axis="x", alpha=0.3)
        axes.set_xlabel("win rate over the baseline, ties as halves (pairs)")

    def draw_lengths(axes: Any, _: str) -> None:
        longest = max((length for own in lengths.values() for length in own), default=1)
        bins = [longest * index / 24 for index in range(25)]
        for (slot, own), colour in zip(lengths.items(), (MODEL, BASELINE), strict=True):
            axes.hist(own, bins=bins, histtype="step", linewidth=1.5, color=colour, label=slot)
        axes.set_xlabel("characters of an answer")
        axes.set_ylabel("answers")
        axes.legend(frameon=False)

    draw_panels(path, {"win rates": draw_rates, "lengths": draw_lengths}, size=(5, 3.6))
