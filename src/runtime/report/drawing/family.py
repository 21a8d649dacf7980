"""The artifacts around one artifact, drawn: what it was made from on its left, what came of it
on its right.

Each artifact stands one column left of everything made from it. Within a column, artifacts are
ordered by where their neighbours stand, which keeps edges short. A step that made many artifacts
of which most lead nowhere is drawn once, with their number.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from markupsafe import Markup

from nemotron_style.runtime.report.page.render import render_fragment
from nemotron_style.runtime.store.lineage.graph import Lineage, Node
from nemotron_style.runtime.store.lineage.text import describe

BOX = (180, 46)
"""Width and height of a box, in pixels."""
GAP = (44, 14)
"""Between columns, and between boxes of a column."""
MOST_IN_COLUMN = 7
MOST_ROWS = 200
"""Of the list beside the drawing."""
NAME = 22
"""Characters of a name that fit in a box."""


@dataclass(frozen=True)
class Box:
    """One artifact, or several that are drawn as one; ``title`` is all that is known of it."""

    refs: tuple[str, ...]
    name: str
    line: str
    title: str
    mark: str
    x: float = 0.0
    y: float = 0.0


def draw_family(lineage: Lineage) -> Markup:
    """The drawing, as a figure, with the same as a table behind it."""
    columns = order_columns(lineage, assign_columns(lineage))
    boxes = place_boxes(lineage, columns)
    at = {ref: box for box in boxes for ref in box.refs}
    links = {
        (at[link.source], at[link.target]): link.slot
        for link in lineage.links
        if link.source in at and link.target in at
    }
    width = max(box.x for box in boxes) + BOX[0] + 2
    height = max(box.y for box in boxes) + BOX[1] + 2
    return render_fragment(
        "family.html.j2",
        boxes=boxes,
        box=BOX,
        curves=[_curve(source, target) for source, target in links],
        width=width,
        height=height,
        description=_describe(lineage),
        rows=[_row(lineage, node) for node in [*lineage.nodes.values()][:MOST_ROWS]],
        left_out=max(0, len(lineage.nodes) - MOST_ROWS),
        cut=sorted(lineage.cut),
    )


def assign_columns(lineage: Lineage) -> dict[str, int]:
    """The column of each artifact: that of the longest way to it; inputs stand left of products."""
    sources: dict[str, list[str]] = {}
    targets: dict[str, list[str]] = {}
    for link in lineage.links:
        sources.setdefault(link.target, []).append(link.source)
        targets.setdefault(link.source, []).append(link.target)
    # A graph of records has no circle; one that was made by hand must not hang a report.
    columns = dict.fromkeys(lineage.nodes, 0)
    for _ in range(len(columns)):
        changed = False
        for ref in columns:
            wanted = max((columns[each] + 1 for each in sources.get(ref, ())), default=0)
            if wanted > columns[ref] and wanted <= len(columns):
                columns[ref], changed = wanted, True
        if not changed:
            break
    # An input stands right before what is made from it, not at the far left.
    for ref in sorted(columns, key=lambda ref: -columns[ref]):
        if nearest := [columns[each] - 1 for each in targets.get(ref, ())]:
            columns[ref] = max(columns[ref], min(nearest))
    return columns


def order_columns(lineage: Lineage, columns: Mapping[str, int]) -> list[list[str]]:
    """The refs of each column from top to bottom, near what they are joined to."""
    neighbours: dict[str, list[str]] = {}
    for link in lineage.links:
        neighbours.setdefault(link.source, []).append(link.target)
        neighbours.setdefault(link.target, []).append(link.source)
    ordered: list[list[str]] = [[] for _ in range(max(columns.values()) + 1)]
    for ref in lineage.nodes:
        ordered[columns[ref]].append(ref)
    for _ in range(4):
        place = {ref: at / len(column) for column in ordered for at, ref in enumerate(column)}

        def around(ref: str, place: Mapping[str, float] = place) -> float:
            near = [place[each] for each in neighbours.get(ref, ()) if each in place]
            return fmean(near) if near else place[ref]

        ordered = [sorted(column, key=around) for column in ordered]
    return [column for column in ordered if column]


def place_boxes(lineage: Lineage, columns: Sequence[Sequence[str]]) -> list[Box]:
    """The boxes with their places; columns are centred."""
    folded = [fold(lineage, column) for column in columns]
    tallest = max(map(len, folded))
    boxes = []
    for number, column in enumerate(folded):
        top = (tallest - len(column)) * (BOX[1] + GAP[1]) / 2
        for at, box in enumerate(column):
            x, y = number * (BOX[0] + GAP[0]) + 1, top + at * (BOX[1] + GAP[1]) + 1
            boxes.append(Box(box.refs, box.name, box.line, box.title, box.mark, x, y))
    return boxes


def fold(lineage: Lineage, column: Sequence[str]) -> list[Box]:
    """The boxes of a column; what is too many for it is drawn as one box, the root never."""
    if len(column) <= MOST_IN_COLUMN:
        return [_box(lineage, ref) for ref in column]
    kept = list(column[: MOST_IN_COLUMN - 1])
    if lineage.root in column and lineage.root not in kept:
        kept[-1] = lineage.root
    rest = tuple(ref for ref in column if ref not in kept)
    named = "\n".join(rest[:20]) + ("\n..." if len(rest) > 20 else "")
    many = Box(rest, f"{len(rest)} more", "listed below", named, "folded")
    return [*(_box(lineage, ref) for ref in kept), many]


def _box(lineage: Lineage, ref: str) -> Box:
    node = lineage.nodes[ref]
    producer = node.record.producer if node.record else None
    if producer:
        line = f"{producer.step} {producer.config_name}"
    else:
        line = "adopted" if node.record else "no longer here"
    mark = "root" if ref == lineage.root else "gone" if node.removed or not node.record else ""
    title = f"{ref}\n{node.kind}\n{node.digest}\n{describe(node)}"
    return Box((ref,), _shorten(ref), _shorten(line), title, mark)


def _shorten(text: str) -> str:
    """A name that fits: its middle goes, since its end tells versions apart."""
    return text if len(text) <= NAME else f"{text[: NAME - 11]}…{text[-10:]}"


def _curve(source: Box, target: Box) -> str:
    """The path of an edge, from the right side of one box to the left side of the other."""
    x1, y1 = source.x + BOX[0], source.y + BOX[1] / 2
    x2, y2 = target.x, target.y + BOX[1] / 2
    bend = max((x2 - x1) / 2, 20)
    return f"M{x1:g} {y1:g}C{x1 + bend:g} {y1:g} {x2 - bend:g} {y2:g} {x2:g} {y2:g}"


def _describe(lineage: Lineage) -> str:
    """The edges in words, for who cannot see the drawing."""
    pairs: Iterable[str] = (
        f"{link.target} has {link.source} as {link.slot}" for link in lineage.links[:40]
    )
    return "; ".join(pairs) or "It was made from nothing in the store, and nothing from it."


def _row(lineage: Lineage, node: Node) -> dict[str, Any]:
    edges = node.record.inputs if node.record else ()
    used = [f"{edge.slot}: {edge.ref}" for edge in edges]
    return {
        "ref": node.ref,
        "kind": node.kind,
        "digest": node.digest,
        "made": describe(node),
        "inputs": used,
        "is_root": node.ref == lineage.root,
    }
