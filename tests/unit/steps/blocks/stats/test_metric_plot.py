"""Plots of metrics: what has no point is left out, and one point is seen."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from nemotron_style.steps.blocks.stats import metric_plot
from nemotron_style.steps.blocks.stats.metric_plot import draw_metrics

PANELS = {
    "loss": {"loss": "train", "validation_loss": "validation"},
    "reward": {"reward": "all samples"},
}


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[tuple[Any, ...]]]:
    """What each panel draws, by its title: label, steps, marker."""
    panels: dict[str, list[tuple[Any, ...]]] = {}

    class Axes:
        def __init__(self, title: str) -> None:
            self.lines = panels.setdefault(title, [])

        def plot(self, steps: Any, values: Any, *, label: str, marker: str | None) -> None:
            self.lines.append((label, steps, marker))

        def set_title(self, *_: Any, **__: Any) -> None: ...

        set_xlabel = legend = set_title

    def draw(path: Path, wanted: Any) -> Path:
        for title, paint in wanted.items():
            paint(Axes(title), title)
        return path

    monkeypatch.setattr(metric_plot, "draw_panels", draw)
    return panels


def test_panels_without_a_point_are_left_out(drawn: Any, tmp_path: Path) -> None:
    lines = [{"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.0, "validation_loss": 1.5}]
    assert draw_metrics(lines, PANELS, tmp_path / "a.png")
    assert drawn == {"loss": [("train", (1, 2), None), ("validation", (2,), "o")]}


def test_a_single_point_is_marked(drawn: Any, tmp_path: Path) -> None:
    draw_metrics([{"step": 1, "reward": 2.0}], PANELS, tmp_path / "a.png")
    assert drawn == {"reward": [("all samples", (1,), "o")]}


def test_nothing_is_drawn_of_nothing(tmp_path: Path) -> None:
    assert draw_metrics([{"step": 1, "lr": 2.0}], PANELS, tmp_path / "a.png") is None
    assert not (tmp_path / "a.png").exists()
