"""A lineage as text: a tree, JSON, Mermaid, Graphviz or OpenLineage."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from html import escape

from nemotron_style.runtime.store.lineage.graph import Lineage, Node, to_dict
from nemotron_style.runtime.store.lineage.openlineage import to_events
from nemotron_style.runtime.store.record import Record

_SHORT = 12
_DEEPEST = 24  # levels
_INDENT = 4  # columns a level


def render(lineage: Lineage, style: str) -> str:
    """The graph as ``tree``, ``json``, ``mermaid``, ``dot`` or ``openlineage`` text."""
    return STYLES[style](lineage)


def render_tree(lineage: Lineage) -> str:
    """One branch a node; a node that several share is shown in full where it stands first.

    A branch deeper than ``_DEEPEST`` is continued below, at the margin: with every indent kept, the
    text of a long chain would grow with the square of its length.
    """
    # A stack instead of recursion: chains of a thousand artifacts are deeper than Python allows.
    lines: list[str] = []
    shown: set[str] = set()
    pending = [(lineage.root, "", "", "")]
    below: dict[str, None] = {}
    while pending or below:
        if not pending:
            ref = next(iter(below))
            del below[ref]
            pending.append((ref, "", "", ""))
        ref, label, head, tail = pending.pop()
        node = lineage.nodes[ref]
        further = lineage.beyond(ref)
        title = f"{head}{label}{ref}  {node.kind}  {short(node.digest)}"
        if ref in shown:
            lines.append(f"{title}  (shown above)")
        elif ref in below or (further and len(tail) >= _DEEPEST * _INDENT):
            lines.append(f"{title}  (continued below)")
            below[ref] = None
        else:
            shown.add(ref)
            bar = "│   " if further else "    "
            lines += [title, tail + bar + describe(node)]
            pending += reversed(_branches(further, tail))
    return "\n".join(lines)


def _branches(further: list[tuple[str, str]], tail: str) -> list[tuple[str, str, str, str]]:
    last = len(further) - 1
    return [
        (ref, f"{slot}: ", tail + ("└── " if index == last else "├── "),
         tail + ("    " if index == last else "│   "))
        for index, (slot, ref) in enumerate(further)
    ]  # fmt: skip


def describe(node: Node) -> str:
    """Whether it was removed, and who made it."""
    if node.record is None:
        return "no longer in the store"
    maker = describe_maker(node.record)
    return f"{node.removed}; {maker}" if node.removed else maker


def describe_maker(record: Record) -> str:
    """Step, config, run and code that made it; or where it was adopted from."""
    if record.producer is None:
        how = "adopted by reference" if record.is_referenced else "adopted"
        return f"{how} from {record.origin.source}" if record.origin else "no producer is known"
    producer = record.producer
    made = f"{producer.step}@{producer.config_name} ({producer.run_id})"
    return f"made by {made}, code {describe_code(record)}, config {digest_config(record)}"


def describe_code(record: Record) -> str:
    """Version, short commit, and ``+changes`` when the checkout differed from its commit."""
    version, commit = record.code.get("version"), record.code.get("commit")
    parts = [str(version)] if version else []
    if commit:
        changes = "+changes" if record.code.get("difference") else ""
        parts.append(f"{str(commit)[:_SHORT]}{changes}")
    return " ".join(parts) or "unknown"


def digest_config(record: Record) -> str:
    """The first digits of the config's hash: equal exactly when the configs are."""
    text = json.dumps(record.config, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:_SHORT]


def short(digest: str) -> str:
    """The first digits of an artifact's digest."""
    return digest.removeprefix("sha256:")[:_SHORT]


def render_mermaid(lineage: Lineage) -> str:
    """A Mermaid flowchart; arrows lead from inputs to products."""
    names = _names(lineage)
    lines = ["flowchart LR"]
    for ref, node in lineage.nodes.items():
        label = "<br/>".join(escape(line, quote=False) for line in _label(node))
        lines.append(f'    {names[ref]}["{label.replace(chr(34), "&quot;")}"]')
    for link in lineage.links:
        lines.append(f"    {names[link.source]} -->|{link.slot}| {names[link.target]}")
    return "\n".join(lines)


def render_dot(lineage: Lineage) -> str:
    """A Graphviz digraph; arrows lead from inputs to products."""
    names = _names(lineage)
    lines = ["digraph lineage {", "    rankdir=LR;", "    node [shape=box];"]
    for ref, node in lineage.nodes.items():
        lines.append(f"    {names[ref]} [label={json.dumps(chr(10).join(_label(node)))}];")
    for link in lineage.links:
        label = json.dumps(link.slot)
        lines.append(f"    {names[link.source]} -> {names[link.target]} [label={label}];")
    return "\n".join([*lines, "}"])


def _names(lineage: Lineage) -> Mapping[str, str]:
    return {ref: f"n{index}" for index, ref in enumerate(lineage.nodes)}


def _label(node: Node) -> list[str]:
    producer = node.record.producer if node.record else None
    made = f"{producer.step}@{producer.config_name}" if producer else describe(node)
    return [node.ref, node.kind, short(node.digest), made]


STYLES: dict[str, Callable[[Lineage], str]] = {
    "tree": render_tree,
    "json": lambda lineage: json.dumps(to_dict(lineage), indent=2, ensure_ascii=False),
    "mermaid": render_mermaid,
    "dot": render_dot,
    "openlineage": lambda lineage: json.dumps(to_events(lineage), indent=2, ensure_ascii=False),
}
