"""What an artifact was made from, or what was made from it, as a graph of artifacts.

Nodes are refs, so two artifacts of equal content stay apart. Adopted artifacts are roots. One that
was removed is told by the record in its tombstone; an input that is no longer in the store for
another reason is still a node, known by what its consumer's record says.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Literal

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


Direction = Literal["up", "down", "both"]


@dataclass
class Lineage:
    """What is reached from ``root``: upstream, downstream, or both ways.

    ``cut`` are the refs of nodes that lead further than the graph was followed.
    """

    root: str
    direction: Direction = "up"
    nodes: dict[str, Node] = field(default_factory=dict)
    links: list[Link] = field(default_factory=list)
    cut: set[str] = field(default_factory=set)
    _beyond: dict[str, list[tuple[str, str]]] = field(default_factory=dict)

    def add(self, node: Node) -> bool:
        """Add a node; False when it is there already."""
        return self.nodes.setdefault(node.ref, node) is node

    def link(self, link: Link) -> None:
        """Add an edge."""
        down = self.direction == "down"
        near, far = (link.source, link.target) if down else (link.target, link.source)
        self.links.append(link)
        self._beyond.setdefault(near, []).append((link.slot, far))

    def beyond(self, ref: str) -> list[tuple[str, str]]:
        """(slot, ref) of the nodes one step further from the root."""
        return self._beyond.get(ref, [])


def walk(
    store: Store, start: Artifact | Tombstone, *, down: bool = False, depth: int | None = None
) -> Lineage:
    """Follow edges from ``start``, at most ``depth`` of them; each artifact is expanded once."""
    root = describe_node(start)
    lineage = Lineage(root.ref, "down" if down else "up")
    lineage.add(root)
    expand = _downstream if down else _upstream
    level = [root]
    while level and depth != 0:
        found = (other for node in level for other in expand(store, node))
        level = [other for other in found if lineage.add(other)]
        depth = None if depth is None else depth - 1
    for node in level:  # none of them, when the graph was followed to its end
        beyond = (other for other in expand(store, node) if other.ref not in lineage.nodes)
        lineage.cut |= {node.ref for _ in islice(beyond, 1)}
    return _link(lineage)


def around(store: Store, start: Artifact | Tombstone, *, hops: int = 2) -> Lineage:
    """What ``start`` was made from and what was made from it, each as far as ``hops`` edges."""
    up, down = (walk(store, start, down=way, depth=hops) for way in (False, True))
    return _link(Lineage(up.root, "both", nodes=up.nodes | down.nodes, cut=up.cut | down.cut))


def _link(lineage: Lineage) -> Lineage:
    """Add the edges between the nodes, which their records tell."""
    for node in lineage.nodes.values():
        for edge in node.record.inputs if node.record else ():
            source = lineage.nodes.get(edge.ref)
            if source and (source.digest == edge.digest or lineage.direction == "up"):
                lineage.link(Link(edge.slot, edge.ref, node.ref))
    return lineage


def describe_node(source: Artifact | Tombstone) -> Node:
    """An artifact, or one that was removed, as a node."""
    record = source.record
    removed = source.describe() if isinstance(source, Tombstone) else ""
    return Node(record.ref, record.kind, record.digest, record, removed)


def _upstream(store: Store, node: Node) -> Iterator[Node]:
    for edge in node.record.inputs if node.record else ():
        source = store.find(edge.ref) or store.tombstone(edge.ref)
        # Other content under the same ref (a store put together from two) is not the input.
        same = source if source and source.record.digest == edge.digest else None
        yield describe_node(same) if same else Node(edge.ref, edge.kind, edge.digest, None)


def _downstream(store: Store, node: Node) -> Iterator[Node]:
    edges = read_edges(store.layout, "down", node.digest, node.ref)
    for slot, ref in sorted(edges, key=_by_version):
        consumer = store.find(ref) or store.tombstone(ref)
        # A key may stand under a wrong name; the consumer's record says what it was made from.
        read = consumer.record.inputs if consumer else ()
        if consumer and (slot, node.ref, node.digest) in {(e.slot, e.ref, e.digest) for e in read}:
            yield describe_node(consumer)


def _by_version(edge: tuple[str, str]) -> tuple[str, str, int, str]:
    slot, ref = edge
    name, _, version = ref.partition(":v")
    return slot, name, int(version) if version.isdecimal() else 0, ref


def to_dict(lineage: Lineage) -> dict[str, Any]:
    """Everything known: each node with its whole record, and the edges."""
    return {
        "root": lineage.root,
        "direction": lineage.direction,
        "nodes": [_node_dict(node) for node in lineage.nodes.values()],
        "edges": [
            {"slot": link.slot, "from": link.source, "to": link.target} for link in lineage.links
        ],
        "cut": sorted(lineage.cut),
    }


def _node_dict(node: Node) -> dict[str, Any]:
    record = node.record.model_dump(mode="json") if node.record else None
    known = {"ref": node.ref, "kind": node.kind, "digest": node.digest}
    return known | {"missing": record is None, "removed": node.removed or None, "record": record}
