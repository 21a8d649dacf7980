"""What an artifact was made from, or what was made from it, as a graph of artifacts.

Nodes are refs, so two artifacts of equal content stay apart. Adopted artifacts are roots. One that
was removed is told by the record in its tombstone; an input that is no longer in the store for
another reason is still a node, known by what its consumer's record says.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, Literal, NamedTuple

from nemotron_style.runtime.errors import ArtifactError
from nemotron_style.runtime.store.digest import RECORD_NAME
from nemotron_style.runtime.store.index import read_edges
from nemotron_style.runtime.store.lineage.record_head import Head, Input, read_head
from nemotron_style.runtime.store.record import Artifact, Record, read_record
from nemotron_style.runtime.store.roots.files import on_disk
from nemotron_style.runtime.store.store import Store
from nemotron_style.runtime.store.tombstone import Tombstone, removed_refs


class Node:
    """One artifact of a graph: its ``ref``, ``kind`` and ``digest``, and the ``inputs`` known.

    ``removed`` says by whom and when its content was removed, and is empty where it is there.
    """

    __slots__ = ("_record", "digest", "inputs", "kind", "ref", "removed")

    def __init__(
        self, ref: str, kind: str, digest: str, record: Record | None, removed: str = ""
    ) -> None:
        self.ref, self.kind, self.digest, self.removed = ref, kind, digest, removed
        edges = record.inputs if record else ()
        self.inputs: Sequence[Input] = [(e.slot, e.ref, e.kind, e.digest) for e in edges]
        self._record = record

    @property
    def record(self) -> Record | None:
        """The whole record; None when nothing of it is in the store any more."""
        return self._record


class _StoredNode(Node):
    """An artifact in the store; the record is read when somebody asks for more than its head."""

    __slots__ = ("_path",)

    def __init__(self, head: Head, path: str) -> None:
        self.ref, self.kind, self.digest, self.inputs = head
        self.removed = ""
        self._path = path

    @property
    def record(self) -> Record | None:
        if self._path:
            path, self._path = self._path, ""
            self._record = None
            with suppress(FileNotFoundError, ArtifactError):
                self._record = read_record(Path(path))
        return self._record


class Link(NamedTuple):
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

    def add(self, node: Node) -> bool:
        """Add a node; False when it is there already."""
        if node.ref in self.nodes:
            return False
        self.nodes[node.ref] = node
        return True

    def link(self, link: Link) -> None:
        """Add an edge."""
        self.links.append(link)
        self.__dict__.pop("_beyond", None)

    def beyond(self, ref: str) -> list[tuple[str, str]]:
        """(slot, ref) of the nodes one step further from the root."""
        return self._beyond.get(ref, [])

    @cached_property
    def _beyond(self) -> dict[str, list[tuple[str, str]]]:
        found: dict[str, list[tuple[str, str]]] = {}
        for slot, source, target in self.links:
            near, far = (source, target) if self.direction == "down" else (target, source)
            found.setdefault(near, []).append((slot, far))
        return found


def walk(
    store: Store, start: Artifact | Tombstone, *, down: bool = False, depth: int | None = None
) -> Lineage:
    """Follow edges from ``start``, at most ``depth`` of them; each artifact is expanded once."""
    root = describe_node(start)
    lineage = Lineage(root.ref, "down" if down else "up")
    lineage.add(root)
    reader = _Reader(store)
    expand = reader.list_downstream if down else reader.list_upstream
    level = [root]
    while level and depth != 0:
        level = [other for node in level for other in expand(node) if lineage.add(other)]
        depth = None if depth is None else depth - 1
    for node in level:  # none of them, when the graph was followed to its end
        beyond = (other for other in expand(node) if other.ref not in lineage.nodes)
        lineage.cut |= {node.ref for _ in islice(beyond, 1)}
    return _link(lineage)


def around(store: Store, start: Artifact | Tombstone, *, hops: int = 2) -> Lineage:
    """What ``start`` was made from and what was made from it, each as far as ``hops`` edges."""
    up, down = (walk(store, start, down=way, depth=hops) for way in (False, True))
    return _link(Lineage(up.root, "both", nodes=up.nodes | down.nodes, cut=up.cut | down.cut))


def _link(lineage: Lineage) -> Lineage:
    """Add the edges between the nodes, which their records tell."""
    nodes, is_up = lineage.nodes, lineage.direction == "up"
    lineage.links = [
        Link(slot, ref, node.ref)
        for node in nodes.values()
        for slot, ref, _kind, digest in node.inputs
        if (source := nodes.get(ref)) and (is_up or source.digest == digest)
    ]
    return lineage


def describe_node(source: Artifact | Tombstone) -> Node:
    """An artifact, or one that was removed, as a node."""
    record = source.record
    removed = source.describe() if isinstance(source, Tombstone) else ""
    return Node(record.ref, record.kind, record.digest, record, removed)


class _Reader:
    """The nodes of a store, each read once."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.known: dict[str, Node | None] = {}
        self.removed = removed_refs(store.layout)
        on_this_machine = on_disk(store.layout.root)
        self.folder = f"{store.layout.artifacts}" if on_this_machine else ""

    def list_upstream(self, node: Node) -> Iterator[Node]:
        """What a node was made from."""
        for _slot, ref, kind, digest in node.inputs:
            source = self.read(ref)
            # Other content under the same ref (a store put together from two) is not the input.
            is_same = source is not None and source.digest == digest
            yield source if source and is_same else Node(ref, kind, digest, None)

    def list_downstream(self, node: Node) -> Iterator[Node]:
        """What was made from a node."""
        edges = read_edges(self.store.layout, "down", node.digest, node.ref)
        for slot, ref in sorted(edges, key=_by_version):
            consumer = self.read(ref)
            # A key may stand under a wrong name; the consumer's record says what it was made from.
            read = consumer.inputs if consumer else ()
            asked = (slot, node.ref, node.digest)
            if consumer and asked in {(each, of, digest) for each, of, _kind, digest in read}:
                yield consumer

    def read(self, ref: str) -> Node | None:
        """The artifact ``name:v3``, be it removed; None when nothing is known of it."""
        if ref not in self.known:
            self.known[ref] = self._read_stored(ref) or self._read_any(ref)
        return self.known[ref]

    def _read_stored(self, ref: str) -> Node | None:
        if not self.folder or ref in self.removed or "/" in ref:
            return None
        path = f"{self.folder}/{ref.replace(':', '/')}/{RECORD_NAME}"
        head = read_head(path)
        return _StoredNode(head, path) if head and head.ref == ref else None

    def _read_any(self, ref: str) -> Node | None:
        source = self.store.find(ref) or self.store.tombstone(ref)
        return describe_node(source) if source else None


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
