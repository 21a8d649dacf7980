"""A lineage as a drawing that another program makes: Mermaid or Graphviz.

Arrows lead from inputs to products. Nodes are called ``n0``, ``n1`` ...; refs and whatever else
comes from users stand in quoted labels alone, and cannot end them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from nemotron_style.runtime.store.lineage.graph import Lineage, Node
from nemotron_style.runtime.store.lineage.text import describe, short

# Besides quotes and brackets: "#35;" is how Mermaid writes a character, "%%{" begins a directive
# wherever it stands, and a label that begins with "`" is Markdown.
_MERMAID = {
    "&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;",
    "#": "#35;", "%": "#37;", "`": "#96;", "{": "#123;", "}": "#125;",
}  # fmt: skip
_DOT = {"\\": "\\\\", '"': '\\"'}


def render_mermaid(lineage: Lineage) -> str:
    """A Mermaid flowchart."""
    names = _names(lineage)
    lines = ["flowchart LR"]
    for ref, node in lineage.nodes.items():
        label = "<br/>".join(_escape(line, _MERMAID) for line in _label(node))
        lines.append(f'    {names[ref]}["{label}"]')
    for link in lineage.links:
        # Quoted, as a slot may have the name of a keyword ("end").
        slot = _escape(link.slot, _MERMAID)
        lines.append(f'    {names[link.source]} -->|"{slot}"| {names[link.target]}')
    return "\n".join(lines)


def render_dot(lineage: Lineage) -> str:
    """A Graphviz digraph."""
    names = _names(lineage)
    lines = ["digraph lineage {", "    rankdir=LR;", "    node [shape=box];"]
    for ref, node in lineage.nodes.items():
        label = "\\n".join(_escape(line, _DOT) for line in _label(node))
        lines.append(f'    {names[ref]} [label="{label}"];')
    for link in lineage.links:
        edge = f"{names[link.source]} -> {names[link.target]}"
        lines.append(f'    {edge} [label="{_escape(link.slot, _DOT)}"];')
    return "\n".join([*lines, "}"])


def _names(lineage: Lineage) -> Mapping[str, str]:
    return {ref: f"n{index}" for index, ref in enumerate(lineage.nodes)}


def _label(node: Node) -> list[str]:
    producer = node.record.producer if node.record else None
    made = f"{producer.step}@{producer.config_name}" if producer else describe(node)
    return [node.ref, node.kind, short(node.digest), made]


def _escape(text: str, written: Mapping[str, str]) -> str:
    """``text`` in one line; a character that cannot be printed as a question mark in a box."""
    printable = re.sub(r"\s", " ", text)
    shown = (each if each.isprintable() else "\ufffd" for each in printable)
    return "".join(written.get(each, each) for each in shown)
