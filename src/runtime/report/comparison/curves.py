"""Curves of one figure of several runs, drawn over each other."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup

from nemotron_style.runtime.report.drawing.curves import collect_points, rank_figure, read_sampled
from nemotron_style.runtime.report.drawing.figures import Series, draw_lines
from nemotron_style.runtime.report.subject import Subject

MOST_CHARTS = 24


def draw_over_each_other(
    subjects: Sequence[Subject], letters: str
) -> tuple[tuple[Markup, ...], tuple[str, ...], dict[str, list[str]]]:
    """A chart for each figure that several have; those without room, and those of one alone."""
    points = [
        collect_points(read_sampled(subject.run.path / "metrics.jsonl")[0]) if subject.run else {}
        for subject in subjects
    ]
    owners: dict[str, list[int]] = {}
    for at, figures in enumerate(points):
        for name in figures:
            owners.setdefault(name, []).append(at)
    ends = {f"{name}{end}" for name in owners for end in ("_low", "_high")}
    shared = [name for name, have in owners.items() if len(have) > 1 and name not in ends]
    moving = [name for name in shared if _moves([points[at][name] for at in owners[name]])]
    moving.sort(key=lambda name: ("validation" not in name, *rank_figure(name)))
    charts = [
        draw_lines(
            name.replace("_", " "),
            [
                Series(subjects[at].name, tuple(points[at][name]), style=at, mark=letters[at])
                for at in owners[name]
            ],
        )
        for name in moving[:MOST_CHARTS]
    ]
    single: dict[str, list[str]] = {}
    for name, have in owners.items():
        if len(have) == 1 and name not in ends:
            single.setdefault(letters[have[0]], []).append(name)
    return tuple(filter(None, charts)), tuple(moving[MOST_CHARTS:]), single


def _moves(lines: Sequence[Sequence[tuple[float, float]]]) -> bool:
    """Whether there is a curve: what was measured once, or never changes, is told in the table."""
    several = any(len({x for x, _ in points}) > 1 for points in lines)
    return several and len({y for points in lines for _, y in points}) > 1
