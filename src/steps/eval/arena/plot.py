"""The picture of an evaluation: win rates with their intervals, and the lengths of the answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

BASELINE, MODEL = "#9a9a9a", "#4c9a2a"


def draw_arena(
    path: Path, *, rates: Mapping[str, Mapping[str, Any]], lengths: Mapping[str, Sequence[int]]
) -> None:
    """Write a PNG: a win rate a line with its 95% interval, and a histogram of lengths."""
    figure = Figure(figsize=(10, 1.6 + 0.4 * max(4, len(rates))), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    _draw_rates(left, {name: rate for name, rate in rates.items() if rate["pairs"]})
    _draw_lengths(right, lengths)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    # Without a software version in it the same figures give the same bytes.
    figure.savefig(path, dpi=120, metadata={"Software": None})


def _draw_rates(axes: Any, rates: Mapping[str, Mapping[str, Any]]) -> None:
    for place, rate in enumerate(reversed(list(rates.values()))):
        below, above = rate["rate"] - rate["low"], rate["high"] - rate["rate"]
        margins = [[max(0.0, below)], [max(0.0, above)]]
        axes.errorbar(rate["rate"], place, xerr=margins, fmt="o", color=MODEL, markersize=5)
    labels = [f"{name} ({rate['pairs']})" for name, rate in rates.items()]
    axes.set_yticks(range(len(labels)), labels[::-1])
    axes.axvline(0.5, color=BASELINE, linewidth=1, linestyle="--")
    axes.set_xlim(0, 1)
    axes.set_ylim(-0.7, len(labels) - 0.3)
    axes.grid(axis="x", alpha=0.3)
    axes.set_xlabel("win rate over the baseline, ties as halves (pairs)")


def _draw_lengths(axes: Any, lengths: Mapping[str, Sequence[int]]) -> None:
    longest = max((length for own in lengths.values() for length in own), default=1)
    bins = [longest * place / 24 for place in range(25)]
    for (slot, own), colour in zip(lengths.items(), (MODEL, BASELINE), strict=True):
        axes.hist(own, bins=bins, histtype="step", linewidth=1.5, color=colour, label=slot)
    axes.set_xlabel("characters of an answer")
    axes.set_ylabel("answers")
    axes.legend(frameon=False)
