"""Intervals are drawn on the scale of their group, with what they are held to."""

from __future__ import annotations

import math
import re

from nemotron_style.runtime.report.drawing.intervals import (
    Interval,
    draw_interval,
    draw_scale,
    fit_scale,
)


def test_rows_of_a_group_share_a_scale_that_holds_the_reference():
    rows = [Interval(60, 50.5, 75), Interval(70, 65, 80), Interval(math.nan, 0, 1)]
    scale = fit_scale(rows, 50)
    places = [scale.place(value) for value in (50, 60, 70, 80)]
    assert places == sorted(places)
    assert scale.reference_x == places[0]
    drawn = [draw_interval(row, scale) for row in rows]
    assert drawn[2] == ""
    assert [re.search(r'cx="([\d.]+)"', str(each))[1] for each in drawn[:2]] == [
        f"{place:.1f}" for place in places[1:3]
    ]
    assert all(each.count('class="reference"') == 1 for each in drawn[:2])


def test_a_scale_says_what_its_reference_means():
    text = draw_scale(fit_scale([Interval(0.1, -0.1, 0.3)], 0.0), "<no> difference")
    assert "&lt;no&gt; difference" in text
    assert ">0.0<" in text
    assert 'class="reference"' not in draw_interval(Interval(1, 0, 2), fit_scale([], None))
