"""What an artifact was made from, or what was made from it, as a graph of artifacts.

Nodes are refs, so two artifacts of equal content stay apart. Adopted artifacts are roots. An
input that is no longer in the store is still a node, known by what its consumer's record says.
"""

from __future__ import annotations

import hashlib
import json
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from nemotron_style.runtime.artifact import Artifact, Record
from nemotron_style.runtime.store import Store

_SHORT = 12


@dataclass(frozen=True)
class Node:
    """One artifact of a graph; ``artifact`` is None when it is no longer in the store."""

    ref: str
    kind: str
    digest: str
    artifact: Artifact | None


@dataclass(frozen=True)
class Link:
    """``source`` filled ``slot`` of the run that made ``target``; both are refs."""

    slot: str
    source: str
    target: str


@dataclass
class Lineage:
    """Everything that is reached from ``root``, upstream or (``down``) downstream."""

    root: str
    down: bool
    nodes: dict[str, Node] = field(default_factory=dict)
    links: list[Link] = field(default_factory=list)
    _beyond: dict[str, list[tuple[str, str]]] = field(default_factory=dict)

    def add(self, node: Node) -> bool:
        """Add a node; False when it is there already."""
        return self.nodes.setdefault(node.ref, node) is node

    def link(self, link: Link) -> None:
        """Add an edge."""
        near, far = (link.source, link.target) if self.down else (link.target, link.source)
        self.links.append(link)
        self._beyond.setdefault(near, []).append((link.slot, far))

    def beyond(self, ref: str) -> list[tuple[str, str]]:
        """(slot, ref) of the nodes one step further from the root."""
        return self._beyond.get(ref, [])


def walk(store: Store, artifact: Artifact, *, down: bool = False) -> Lineage:
    """Follow edges from ``artifact`` as far as they go; each artifact is expanded once."""
    lineage = Lineage(artifact.ref, down)
    lineage.add(_node(artifact))
    expand = _downstream if down else _upstream
    pending = deque([artifact])
    while pending:
        for link, node in expand(store, pending.popleft()):
            lineage.link(link)
            if lineage.add(node) and node.artifact:
                pending.append(node.artifact)
    return lineage


def _node(artifact: Artifact) -> Node:
    return Node(artifact.ref, artifact.kind, artifact.digest, artifact)


def _upstream(store: Store, artifact: Artifact) -> Iterator[tuple[Link, Node]]:
    for edge in artifact.record.inputs:
        found = store.find(edge.ref)
        same = found if found and found.digest == edge.digest else None
        link = Link(edge.slot, edge.ref, artifact.ref)
        yield link, Node(edge.ref, edge.kind, edge.digest, same)


def _downstream(store: Store, artifact: Artifact) -> Iterator[tuple[Link, Node]]:
    for slot, consumer in store.consumers(artifact):
        yield Link(slot, artifact.ref, consumer.ref), _node(consumer)


def render(lineage: Lineage, style: str) -> str:
    """The graph as ``tree``, ``json``, ``mermaid``, ``dot`` or ``openlineage`` text."""
    return STYLES[style](lineage)


def to_dict(lineage: Lineage) -> dict[str, Any]:
    """Everything known: each node with its whole record, and the edges."""
    return {
        "root": lineage.root,
        "direction": "down" if lineage.down else "up",
        "nodes": [_node_dict(node) for node in lineage.nodes.values()],
        "edges": [
            {"slot": link.slot, "from": link.source, "to": link.target} for link in lineage.links
        ],
    }


def _node_dict(node: Node) -> dict[str, Any]:
    told = {"ref": node.ref, "kind": node.kind, "digest": node.digest}
    if node.artifact is None:
        return told | {"missing": True, "record": None}
    return told | {"missing": False, "record": node.artifact.record.model_dump(mode="json")}


# Text for people


def render_tree(lineage: Lineage) -> str:
    """One branch a node; a node that several share is told in full where it stands first."""
    lines: list[str] = []
    shown: set[str] = set()
    pending = [(lineage.root, "", "", "")]
    while pending:
        ref, label, head, tail = pending.pop()
        node = lineage.nodes[ref]
        again = ref in shown
        shown.add(ref)
        title = f"{label}{ref}  {node.kind}  {short(node.digest)}"
        lines.append(head + title + ("  (told above)" if again else ""))
        if again:
            continue
        further = lineage.beyond(ref)
        bar = "│   " if further else "    "
        lines.append(tail + bar + describe(node))
        pending += reversed(_branches(further, tail))
    return "\n".join(lines)


def _branches(further: list[tuple[str, str]], tail: str) -> list[tuple[str, str, str, str]]:
    last = len(further) - 1
    return [
        (ref, f"{slot}: ", tail + ("└── " if place == last else "├── "),
         tail + ("    " if place == last else "│   "))
        for place, (slot, ref) in enumerate(further)
    ]  # fmt: skip


def describe(node: Node) -> str:
    """Who made it: step, config, run and code; or where it was adopted from."""
    if node.artifact is None:
        return "no longer in the store"
    record = node.artifact.record
    if record.producer is None:
        return f"adopted from {record.origin.source}" if record.origin else "no producer is known"
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


# Text for other tools


def render_mermaid(lineage: Lineage) -> str:
    """A Mermaid flowchart; arrows lead from inputs to products."""
    names = _names(lineage)
    lines = ["flowchart LR"]
    for ref, node in lineage.nodes.items():
        lines.append(f'    {names[ref]}["{_quote_html("<br/>", _label(node))}"]')
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


def render_json(lineage: Lineage) -> str:
    """:func:`to_dict` as text."""
    return json.dumps(to_dict(lineage), indent=2, ensure_ascii=False)


def render_openlineage(lineage: Lineage) -> str:
    """A JSON list of OpenLineage events."""
    from nemotron_style.runtime.openlineage import to_events

    return json.dumps(to_events(lineage), indent=2, ensure_ascii=False)


def _names(lineage: Lineage) -> Mapping[str, str]:
    return {ref: f"n{place}" for place, ref in enumerate(lineage.nodes)}


def _label(node: Node) -> list[str]:
    producer = node.artifact.record.producer if node.artifact else None
    made = f"{producer.step}@{producer.config_name}" if producer else describe(node)
    return [node.ref, node.kind, short(node.digest), made]


def _quote_html(between: str, lines: list[str]) -> str:
    escaped = (line.replace("&", "&amp;").replace('"', "&quot;") for line in lines)
    return between.join(line.replace("<", "&lt;").replace(">", "&gt;") for line in escaped)


STYLES: dict[str, Callable[[Lineage], str]] = {
    "tree": render_tree,
    "json": render_json,
    "mermaid": render_mermaid,
    "dot": render_dot,
    "openlineage": render_openlineage,
}
