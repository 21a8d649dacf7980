"""The picture of an evaluation: for every label, how often it was followed before and after."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nemotron_style.steps.blocks.stats.metric_plot import draw_panels

BEFORE, AFTER, LINK = "#9a9a9a", "#4c9a2a", "#d5d5d5"

Rates = Mapping[str, Mapping[str, Any]]


def draw_labels(path: Path, *, model: Rates, baseline: Rates | None, title: str) -> None:
    """Write a PNG: one line a label, a dot a model with its 95% interval."""
    labels = sorted(model, reverse=True)

    def draw(axes: Any, title: str) -> None:
        if baseline is not None:
            for row, label in enumerate(labels):
                ends = [baseline[label]["rate"], model[label]["rate"]]
                axes.plot(ends, [row, row], color=LINK, linewidth=3, zorder=1)
            _dots(axes, [baseline[label] for label in labels], name="baseline", colour=BEFORE)
        _dots(axes, [model[label] for label in labels], name="model", colour=AFTER)
        axes.set_yticks(range(len(labels)), labels, fontsize=8)
        axes.set_xlim(0, 1)
        axes.set_xlabel("responses with every attribute as requested")
        axes.set_title(title, loc="left", fontsize=11)
        axes.grid(axis="x", alpha=0.3)
        axes.legend(loc="lower right", frameon=False)

    draw_panels(path, {title: draw}, size=(8, 1.2 + 0.3 * len(labels)))


def _dots(axes: Any, rates: Sequence[Mapping[str, Any]], *, name: str, colour: str) -> None:
    centres = [rate["rate"] for rate in rates]
    # At a rate of 0 or 1 rounding may leave an end of the interval just inside of it.
    left = [max(0.0, rate["rate"] - rate["low"]) for rate in rates]
    right = [max(0.0, rate["high"] - rate["rate"]) for rate in rates]
    style = {"fmt": "o", "markersize": 5, "elinewidth": 1, "zorder": 2}
    ends = [left, right]
    axes.errorbar(centres, range(len(rates)), xerr=ends, label=name, color=colour, **style)
