"""Plots of runs that are about something else: each kind is drawn once a process, then copied."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nemotron_style.steps.blocks.stats import metric_plot

draw_panels = metric_plot.draw_panels
drawn: dict[tuple[str, ...], bytes] = {}


def draw_once(path: Path, panels: Mapping[str, Any], **options: Any) -> Path | None:
    """As ``draw_panels``, or a copy of what it made for this file name and these panels before.

    To draw text takes two tenths of a second, which is a fifth of such a run.
    """
    kind = (path.name, *panels)
    if kind in drawn:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(drawn[kind])
        return path
    made = draw_panels(path, panels, **options)
    if made:
        drawn[kind] = made.read_bytes()
    return made
