"""The drawing of a lineage: inputs on the left, products on the right, wide fans folded."""

from __future__ import annotations

from nemotron_style.runtime.report.drawing.family import (
    MOST_IN_COLUMN,
    assign_columns,
    draw_family,
    order_columns,
    place_boxes,
)
from nemotron_style.runtime.store.lineage.graph import Lineage, Link, Node


def lineage(root: str, *links: tuple[str, str]) -> Lineage:
    graph = Lineage(root, "both")
    for ref in dict.fromkeys([root, *(ref for link in links for ref in link)]):
        graph.add(Node(ref, "k", "sha256:" + "0" * 64, None))
    for source, target in links:
        graph.link(Link("slot", source, target))
    return graph


def test_each_stands_left_of_what_is_made_from_it():
    links = (("a:v1", "b:v1"), ("b:v1", "c:v1"), ("a:v1", "c:v1"), ("d:v1", "c:v1"))
    columns = assign_columns(lineage("c:v1", *links))
    assert columns == {"a:v1": 0, "b:v1": 1, "c:v1": 2, "d:v1": 1}


def test_a_circle_made_by_hand_is_drawn_too():
    assert draw_family(lineage("a:v1", ("a:v1", "b:v1"), ("b:v1", "a:v1")))


def test_a_wide_fan_is_folded_and_the_root_never():
    graph = lineage("z:v1", *((f"in{number}:v1", "z:v1") for number in range(40)))
    boxes = place_boxes(graph, order_columns(graph, assign_columns(graph)))
    assert len(boxes) == MOST_IN_COLUMN + 1
    assert [box.name for box in boxes if len(box.refs) > 1] == ["34 more"]
    assert [box.mark for box in boxes if "z:v1" in box.refs] == ["root"]
    drawing = draw_family(graph)
    assert "34 more" in drawing
    assert all(f"in{number}:v1" in drawing for number in range(40))


def test_what_stands_alone_can_be_drawn():
    assert "made from nothing" in draw_family(lineage("a:v1"))


def test_of_a_thousand_products_the_drawing_stays_small_and_says_so():
    graph = lineage("a:v1", *(("a:v1", f"out{number}:v1") for number in range(1000)))
    drawing = draw_family(graph)
    assert len(drawing) < 60_000
    assert "994 more" in drawing
    assert "801 more artifacts are not listed here." in drawing
