"""What an artifact was made from, or what was made from it, as a graph of artifacts.

Nodes are refs, so two artifacts of equal content stay apart. Adopted artifacts are roots. One that
was removed is told by the record in its tombstone; an input that is no longer in the store for
another reason is still a node, known by what its consumer's record says.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from nemotron_style.runtime.store.index import read_edges
from nemotron_style.runtime.store.record import Artifact, Record
from nemotron_style.runtime.store.store import Store
from nemotron_style.runtime.store.tombstone import Tombstone


@dataclass(frozen=True)
class Node:
    """One artifact of a graph.

    ``record`` is None when nothing of it is in the store any more; ``removed`` says by whom and
    when its content was removed, and is empty where it is there.
    """

    ref: str
    kind: str
    digest: str
    record: Record | None
    removed: str = ""


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


def walk(store: Store, start: Artifact | Tombstone, *, down: bool = False) -> Lineage:
    """Follow edges from ``start`` as far as they go; each artifact is expanded once."""
    root = describe_node(start)
    lineage = Lineage(root.ref, down)
    lineage.add(root)
    expand = _downstream if down else _upstream
    pending = deque([root])
    while pending:
        for link, node in expand(store, pending.popleft()):
            lineage.link(link)
            if lineage.add(node) and node.record:
                pending.append(node)
    return lineage


def describe_node(source: Artifact | Tombstone) -> Node:
    """An artifact, or one that was removed, as a node."""
    record = source.record
    removed = source.describe() if isinstance(source, Tombstone) else ""
    return Node(record.ref, record.kind, record.digest, record, removed)


def _upstream(store: Store, node: Node) -> Iterator[tuple[Link, Node]]:
    for edge in node.record.inputs if node.record else ():
        source = store.find(edge.ref) or store.tombstone(edge.ref)
        # Other content under the same ref (a store put together from two) is not the input.
        same = source if source and source.record.digest == edge.digest else None
        missing = Node(edge.ref, edge.kind, edge.digest, None)
        yield Link(edge.slot, edge.ref, node.ref), describe_node(same) if same else missing


def _downstream(store: Store, node: Node) -> Iterator[tuple[Link, Node]]:
    for slot, ref in read_edges(store.layout, "down", node.digest, node.ref):
        consumer = store.find(ref) or store.tombstone(ref)
        # A key may stand under a wrong name; the consumer's record says what it was made from.
        edges = consumer.record.inputs if consumer else ()
        if consumer and any(
            (e.slot, e.ref, e.digest) == (slot, node.ref, node.digest) for e in edges
        ):
            yield Link(slot, node.ref, consumer.ref), describe_node(consumer)


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
    record = node.record.model_dump(mode="json") if node.record else None
    known = {"ref": node.ref, "kind": node.kind, "digest": node.digest}
    return known | {"missing": record is None, "removed": node.removed or None, "record": record}
