"""What an artifact was made from, or what was made from it, as a graph of artifacts.

Nodes are refs, so two artifacts of equal content stay apart. Adopted artifacts are roots. An
input that is no longer in the store is still a node, known by what its consumer's record says.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from nemotron_style.runtime.store.record import Artifact
from nemotron_style.runtime.store.store import Store


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
        source = store.find(edge.ref)
        # Other content under the same ref (a store put together from two) is not the input.
        same = source if source and source.digest == edge.digest else None
        link = Link(edge.slot, edge.ref, artifact.ref)
        yield link, Node(edge.ref, edge.kind, edge.digest, same)


def _downstream(store: Store, artifact: Artifact) -> Iterator[tuple[Link, Node]]:
    for slot, consumer in store.consumers(artifact):
        yield Link(slot, artifact.ref, consumer.ref), _node(consumer)


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
    record = node.artifact.record.model_dump(mode="json") if node.artifact else None
    known = {"ref": node.ref, "kind": node.kind, "digest": node.digest}
    return known | {"missing": record is None, "record": record}
