"""Figures as inline SVG: lines over steps.

They carry a title and a description in words, values appear under the pointer without a script,
and colours come from the page's style sheet, so they follow light, dark and paper.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from nemotron_style.runtime.report.drawing.axis import Axis, fit_axis, make_axis
from nemotron_style.runtime.report.page.render import render_fragment
from nemotron_style.runtime.units import format_number

MOST_POINTS = 300
"""Of a line; a chart is that many pixels wide, and more would only make the file larger."""
MOST_DOTS = 40
"""Points of a line up to which each is drawn by itself."""
STYLES = 8
"""Looks of a line that the style sheet knows."""

MARK_SIZE = 12
"""Pixels that a letter at the end of a line takes."""
DIGIT, MARK_GAP = 7.7, 9
"""Pixels of a digit of an axis in a wide font, and between the number and the axis."""

Point = tuple[float, float]


@dataclass(frozen=True)
class Series:
    """One line: (x, y) in the order of x; ``band`` has the (low, high) around each y, or nothing.

    ``style`` picks one of the looks; the place among the series of the chart does, without it.
    ``mark`` is a letter at the end of the line: many lines are told apart without colour.
    """

    name: str
    points: tuple[Point, ...]
    band: tuple[Point, ...] = ()
    style: int | None = None
    mark: str = ""


@dataclass(frozen=True)
class _Frame:
    """The rectangle of a chart within its margins, in pixels; y grows downwards."""

    width: float
    height: float
    left: float = 46
    right: float = 12
    top: float = 8
    bottom: float = 38

    @property
    def x_end(self) -> float:
        return self.width - self.right

    @property
    def y_end(self) -> float:
        return self.height - self.bottom


def draw_lines(
    title: str,
    series: Sequence[Series],
    *,
    x_label: str = "step",
    note: str = "",
    size: tuple[float, float] = (440, 220),
) -> Markup:
    """A chart with a line for each series, as a ``<figure>``; "" when no point can be drawn.

    Points that are not finite leave a gap, and the caption counts them. Of long lines, the lowest
    and the highest point of every stretch are drawn, and the caption says so.
    """
    shown = [one for one in series if any(map(_is_finite, one.points))]
    if not shown:
        return Markup("")
    xs = [x for one in shown for x, _ in one.points]
    edges = [edge for one in shown for pair in one.band for edge in pair]
    x_axis = fit_axis(xs)
    y_axis = make_axis([*(y for one in shown for _, y in one.points), *edges])
    longest = max(len(y_axis.write(tick)) for tick in y_axis.ticks)
    left = max(_Frame.left, MARK_GAP + DIGIT * longest)
    frame = _Frame(*size, left=left, right=24 if any(one.mark for one in shown) else 12)
    lines = [_trace(one, at, frame, x_axis, y_axis) for at, one in enumerate(shown)]
    _spread_marks(lines)
    return render_fragment(
        "lines.html.j2",
        title=title,
        description=" ".join(map(describe, shown)),
        notes=[text for text in (note, *_name_gaps(shown), *_name_thinned(shown)) if text],
        frame=frame,
        x_label=x_label,
        x_ticks=[(x_axis.place(t, frame.left, frame.x_end), x_axis.write(t)) for t in x_axis.ticks],
        y_ticks=[(y_axis.place(t, frame.y_end, frame.top), y_axis.write(t)) for t in y_axis.ticks],
        lines=lines,
    )


def describe(series: Series) -> str:
    """A line in words: where it starts and ends, its lowest and its highest point."""
    points = [point for point in series.points if _is_finite(point)]
    (first_x, first), (last_x, last) = points[0], points[-1]
    text = f"{series.name}: {format_number(float(first))} at {first_x:g}"
    if len(points) == 1:
        return text + "."
    lowest, highest = min(points, key=lambda p: p[1]), max(points, key=lambda p: p[1])
    return (
        f"{text}, {format_number(float(last))} at {last_x:g}; lowest "
        f"{format_number(float(lowest[1]))} at {lowest[0]:g}, highest "
        f"{format_number(float(highest[1]))} at {highest[0]:g}."
    )


def thin(points: Sequence[Point], most: int = MOST_POINTS) -> list[Point]:
    """At most about ``most`` of the points: first, last, and the extremes of every stretch."""
    if len(points) <= most:
        return list(points)
    length = math.ceil(2 * len(points) / most)
    kept: list[Point] = [points[0]]
    for start in range(1, len(points) - 1, length):
        stretch = points[start : min(start + length, len(points) - 1)]
        finite = [point for point in stretch if _is_finite(point)] or [stretch[0]]
        kept += sorted({min(finite, key=lambda p: p[1]), max(finite, key=lambda p: p[1])})
    return [*kept, points[-1]]


def _trace(series: Series, at: int, frame: _Frame, x_axis: Axis, y_axis: Axis) -> dict[str, Any]:
    """A line and its band as paths, and its points where they are few."""

    def place(x: float, y: float) -> str:
        across = x_axis.place(x, frame.left, frame.x_end)
        return f"{across:.1f} {y_axis.place(y, frame.y_end, frame.top):.1f}"

    drawn = thin(series.points)
    pieces: list[list[str]] = [[]]
    for point in drawn:
        if _is_finite(point):
            pieces[-1].append(place(*point))
        elif pieces[-1]:
            pieces.append([])
    finite = [point for point in series.points if _is_finite(point)]
    end_x, end_y = finite[-1]
    dots = finite if len(finite) <= MOST_DOTS else []
    return {
        "name": series.name,
        "style": (at if series.style is None else series.style) % STYLES,
        "path": "".join("M" + "L".join(piece) for piece in pieces if piece),
        "band": _trace_band(series, place),
        "mark": series.mark,
        "mark_x": x_axis.place(end_x, frame.left, frame.x_end) + 5,
        "mark_y": y_axis.place(end_y, frame.y_end, frame.top) + 4,
        "dots": [
            {
                "x": x_axis.place(x, frame.left, frame.x_end),
                "y": y_axis.place(y, frame.y_end, frame.top),
                "text": f"{series.name}, {x:g}: {format_number(float(y))}",
            }
            for x, y in dots
        ],
    }


def _spread_marks(lines: list[dict[str, Any]]) -> None:
    """Move letters apart that would stand on each other, as few pixels as it takes."""
    marked = sorted((line for line in lines if line["mark"]), key=lambda line: line["mark_y"])
    for above, below in itertools.pairwise(marked):
        if abs(above["mark_x"] - below["mark_x"]) < MARK_SIZE:
            below["mark_y"] = max(below["mark_y"], above["mark_y"] + MARK_SIZE)


def _trace_band(series: Series, place: Any) -> str:
    """The outline of a band: along its upper edge, and back along the lower one."""
    pairs = [
        (x, low, high)
        for (x, _), (low, high) in zip(series.points, series.band, strict=False)
        if math.isfinite(low) and math.isfinite(high)
    ]
    if not pairs:
        return ""
    upper = [place(x, high) for x, _, high in pairs]
    lower = [place(x, low) for x, low, _ in reversed(pairs)]
    return "M" + "L".join([*upper, *lower]) + "Z"


def _name_gaps(series: Sequence[Series]) -> list[str]:
    counts = {one.name: sum(not _is_finite(point) for point in one.points) for one in series}
    values = {
        name: "1 value is" if n == 1 else f"{n} values are" for name, n in counts.items() if n
    }
    return [f"{name}: {text} not finite." for name, text in values.items()]


def _name_thinned(series: Sequence[Series]) -> list[str]:
    longest = max(len(one.points) for one in series)
    if longest <= MOST_POINTS:
        return []
    return [f"Of {longest} points, the lowest and the highest of every stretch are drawn."]


def _is_finite(point: Point) -> bool:
    return math.isfinite(point[1])
