"""Figures say in words what they draw, leave out what is no number, and escape every name."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from itertools import pairwise

from nemotron_style.runtime.report.drawing.figures import (
    MOST_POINTS,
    Series,
    draw_lines,
    thin,
)

NAN = float("nan")


def parse(figure: str) -> ET.Element:
    """The figure as XML, which it also is: every name that breaks out of it would show here."""
    return ET.fromstring(str(figure))


def test_a_chart_has_a_title_a_description_and_a_line_for_each_series():
    loss = Series("loss", ((1, 2.0), (2, 1.5), (3, 1.0)))
    held_out = Series("held out", ((1, 2.5), (3, 2.25)), band=((2.0, 3.0), (2.0, 2.5)))
    figure = parse(draw_lines("Loss", [loss, held_out]))
    svg = figure.find("svg")
    assert svg.get("role") == "img"
    assert svg.find("title").text == "Loss"
    assert "loss: 2 at 1, 1 at 3; lowest 1 at 3, highest 2 at 1." in svg.find("desc").text
    classes = [path.get("class") for path in svg.iter("path")]
    assert [each for each in classes if each != "grid"] == ["line s0", "band f1", "line s1"]
    assert len(figure.findall("ul/li")) == 2


def test_a_value_that_is_not_finite_leaves_a_gap_and_is_counted():
    points = ((1, 1.0), (2, 2.0), (3, NAN), (4, 1.0), (5, float("inf")))
    figure = parse(draw_lines("Loss", [Series("loss", points)]))
    (line,) = (each for each in figure.iter("path") if each.get("class") == "line s0")
    assert line.get("d").count("M") == 2
    assert figure.find("p").text == "loss: 2 values are not finite."


def test_nothing_is_drawn_of_nothing():
    assert draw_lines("Loss", []) == ""
    assert draw_lines("Loss", [Series("loss", ((1, NAN),))]) == ""


def test_one_point_and_equal_points_can_be_drawn():
    assert draw_lines("Loss", [Series("loss", ((7, 0.0),))])
    assert draw_lines("Loss", [Series("loss", ((1, 3.0), (2, 3.0)))])


def test_a_long_line_keeps_its_ends_and_its_extremes():
    points = [(at, float(at % 10)) for at in range(100_000)]
    points[41_503] = (41_503, -50.0)
    points[77_777] = (77_777, 99.0)
    kept = thin(points)
    assert len(kept) <= MOST_POINTS + 2
    assert kept == sorted(kept)
    assert {points[0], points[-1], points[41_503], points[77_777]} <= set(kept)
    figure = draw_lines("Loss", [Series("loss", tuple(points))])
    assert "Of 100000 points, the lowest and the highest" in figure
    assert len(figure) < 12_000


def test_names_are_text_and_nothing_else():
    evil = '"/><script>alert(1)</script>\x1b[2J\u202e'
    lines = draw_lines(evil, [Series(evil, ((1, 1.0), (2, 2.0))), Series("b", ((1, 1.0),))])
    assert not list(parse(lines).iter("script"))
    assert "\\x1b[2J\\u202e" in lines


def test_long_numbers_of_an_axis_have_room_beside_it():
    def axis(*values):
        chart = draw_lines("rate", [Series("rate", tuple(enumerate(values)))])
        return float(re.search(r'class="grid" d="M([\d.]+) ', chart)[1])

    assert axis(1.0, 2.0) == 46
    assert axis(0.9979, 1.0) > 50  # its marks have six digits


def test_letters_at_the_ends_of_lines_do_not_lie_on_each_other():
    lines = [Series(f"line {mark}", ((0, 0), (1, 1)), mark=mark) for mark in "ABC"]
    chart = draw_lines("loss", lines)
    found = re.findall(r'class="mark f\d" x="([\d.]+)" y="([\d.]+)">(\w)<', chart)
    heights = sorted(float(y) for _, y, _ in found)
    assert [mark for _, _, mark in found] == ["A", "B", "C"]
    assert all(below - above >= 12 for above, below in pairwise(heights))
