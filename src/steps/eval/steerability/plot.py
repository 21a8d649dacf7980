"""The picture of an evaluation: for every label, how often it was followed before and after."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

BEFORE, AFTER, LINK = "#9a9a9a", "#4c9a2a", "#d5d5d5"

Rates = Mapping[str, Mapping[str, Any]]


def draw_labels(path: Path, *, model: Rates, baseline: Rates | None, title: str) -> None:
    """Write a PNG: one line a label, a dot a model with its 95% interval."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    labels = sorted(model, reverse=True)
    figure, axes = plt.subplots(figsize=(8, 1.2 + 0.3 * len(labels)), layout="constrained")
    if baseline is not None:
        for place, label in enumerate(labels):
            ends = [baseline[label]["rate"], model[label]["rate"]]
            axes.plot(ends, [place, place], color=LINK, linewidth=3, zorder=1)
        _dots(axes, [baseline[label] for label in labels], name="baseline", colour=BEFORE)
    _dots(axes, [model[label] for label in labels], name="model", colour=AFTER)
    axes.set_yticks(range(len(labels)), labels, fontsize=8)
    axes.set_xlim(0, 1)
    axes.set_xlabel("responses with every attribute as asked")
    axes.set_title(title, loc="left", fontsize=11)
    axes.grid(axis="x", alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="lower right", frameon=False)
    # Without a software version and a date in it the same figures give the same bytes.
    figure.savefig(path, dpi=120, metadata={"Software": None})
    plt.close(figure)


def _dots(axes: Any, rates: list[Mapping[str, Any]], *, name: str, colour: str) -> None:
    centres = [rate["rate"] for rate in rates]
    left = [max(0.0, rate["rate"] - rate["low"]) for rate in rates]
    right = [max(0.0, rate["high"] - rate["rate"]) for rate in rates]
    axes.errorbar(
        centres, range(len(rates)), xerr=[left, right], label=name, color=colour,
        fmt="o", markersize=5, elinewidth=1, zorder=2,
    )  # fmt: skip
