"""Measured values with their intervals, drawn into the rows of a table.

The numbers stand beside them in words, so the drawings are hidden from screen readers. All rows of
a group have one scale, drawn below the last of them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from nemotron_style.runtime.report.drawing.axis import Axis, make_axis
from nemotron_style.runtime.report.page.render import render_fragment

WIDTH, HEIGHT = 260, 20
MARGIN = 22
"""Room for the ends of the numbers below the first and the last mark."""
MOST_MARKS = 4


@dataclass(frozen=True)
class Interval:
    """A measured value between the ends of its interval."""

    value: float
    low: float
    high: float

    @property
    def is_finite(self) -> bool:
        """Whether it can be drawn."""
        return all(map(math.isfinite, (self.value, self.low, self.high)))


@dataclass(frozen=True)
class Scale:
    """What the rows of a group are drawn on; ``reference`` is what they are held to, or None."""

    axis: Axis
    reference: float | None

    def place(self, value: float) -> float:
        """Pixels from the left."""
        return self.axis.place(value, MARGIN, WIDTH - MARGIN)

    @property
    def reference_x(self) -> float | None:
        """Where the line stands that values are held to."""
        return None if self.reference is None else self.place(self.reference)


def fit_scale(rows: Sequence[Interval], reference: float | None) -> Scale:
    """A scale that holds all rows that can be drawn, and the reference."""
    known = [row for row in rows if row.is_finite]
    values = [end for row in known for end in (row.value, row.low, row.high)]
    values += [] if reference is None else [reference]
    return Scale(make_axis(values, most=MOST_MARKS), reference)


def draw_interval(row: Interval, scale: Scale, *, style: int = 0) -> Markup:
    """A dot on a whisker; "" for what is not finite."""
    if not row.is_finite:
        return Markup("")
    return render_fragment(
        "interval.html.j2",
        width=WIDTH,
        height=HEIGHT,
        reference=scale.reference_x,
        style=style,
        x=scale.place(row.value),
        low=scale.place(row.low),
        high=scale.place(row.high),
    )


def draw_scale(scale: Scale, reference_name: str = "", *, unit: str = "") -> Markup:
    """The marks of a scale; ``reference_name`` says what the reference means."""
    axis, at = scale.axis, scale.reference_x
    marks = [(scale.place(mark), f"{axis.write(mark)}{unit}") for mark in axis.ticks]
    return render_fragment(
        "scale.html.j2",
        width=WIDTH,
        height=2 * HEIGHT - 6 if reference_name else HEIGHT,
        marks=marks,
        reference=at,
        reference_name=reference_name,
        margin=70,
    )
