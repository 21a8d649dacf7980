"""An index of a store: every family of artifacts, from what it began with to what came of it.

A branch is what one run made, or what was brought in. It hangs below the run whose model it went
on from, so every artifact stands once; what else it read is named beside it. A page has room for
:data:`MOST_BRANCHES`, the families with the newest work first; what is left out is counted where
it would stand.
"""

from __future__ import annotations

import importlib.metadata
from collections import defaultdict, deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from nemotron_style.runtime.errors import ArtifactError, Problem, UsageError
from nemotron_style.runtime.report.headline import show_interval, show_value
from nemotron_style.runtime.report.page.embed import Document, embed_records, render_sealed
from nemotron_style.runtime.report.unfinished import Unfinished, list_unfinished
from nemotron_style.runtime.report.verdict import read_own
from nemotron_style.runtime.store.lineage.graph import Node
from nemotron_style.runtime.store.record import Edge, Record
from nemotron_style.runtime.store.store import Store
from nemotron_style.runtime.store.tombstone import read_tombstone, removed_refs

MOST_BRANCHES = 1000
MOST_CHILDREN = 25
"""Of one branch; a sweep has hundreds of equal ones."""
DEEPEST = 10
MOST_OPEN = 60
"""Branches up to which all of them stand open."""
MOST_NAMES = 300
MOST_PROBLEMS = 50
MOST_RECORDS = 60
"""That the page holds word for word, the newest ones: a record takes some ten kilobytes."""
MODEL_SLOTS = ("model", "sampler", "policy")
"""Slots whose artifact a run goes on from: their line is what people mean by a family."""


@dataclass(frozen=True)
class Entry:
    """An artifact by its record; ``removed`` says by whom and when, "" while it is there."""

    record: Record
    removed: str = ""


@dataclass
class Branch:
    """What one run made, or what was brought in: ``outputs``, the one that gave the name first."""

    outputs: list[Entry]
    parent: str = ""
    children: list[Branch] = field(default_factory=list)
    left_out: int = 0
    """Branches below this one that the page has no room for."""
    is_open: bool = False
    newest: str = ""
    """When the newest artifact of it or below it was made."""

    @property
    def main(self) -> Record:
        """The record of the first output."""
        return self.outputs[0].record

    @property
    def source(self) -> str:
        """What made it, in words."""
        if self.main.producer:
            return f"{self.main.producer.step} -c {self.main.producer.config_name}"
        return f"from {self.main.origin.source}" if self.main.origin else "committed by hand"

    @property
    def size(self) -> int:
        """Bytes of all outputs that are there."""
        return sum(each.record.size for each in self.outputs if not each.removed)

    @property
    def finding(self) -> str:
        """What was measured of it with an interval, the first of that; "" where nothing was."""
        first = next(read_own(self.main), None)
        return f"{first.measure} {show_value(first)} ({show_interval(first)})" if first else ""

    @property
    def others(self) -> list[str]:
        """What it was made from besides its parent."""
        return [edge.ref for edge in self.main.inputs if edge.ref != self.parent]


@dataclass(frozen=True)
class NamedGroup:
    """All versions of one name: the newest one's record, and how many there are and were."""

    newest: Entry
    versions: int
    removed: int


@dataclass(frozen=True)
class Catalogue:
    """All that the page of a store says."""

    root: str
    families: list[Branch]
    families_left_out: int
    names: list[NamedGroup]
    names_left_out: int
    kinds: list[tuple[str, int, int]]
    """Kind, how many artifacts, bytes."""
    removed: int
    """Artifacts of which only the record is left."""
    unfinished: list[Unfinished]
    unfinished_left_out: int
    problems: list[Problem]
    documents: list[Document]
    documents_left_out: int

    @property
    def count(self) -> int:
        """How many artifacts there are."""
        return sum(count for _, count, _ in self.kinds)

    @property
    def size(self) -> int:
        """Bytes of all of them; equal files of two artifacts count twice."""
        return sum(size for _, _, size in self.kinds)


def collect_catalogue(store: Store) -> Catalogue:
    """What is in a store. Raises UsageError where nothing is, and nothing is wrong either."""
    artifacts, problems, _ = store.list_artifacts()
    removed, unreadable = read_removed(store)
    entries = [*(Entry(artifact.record) for artifact in artifacts), *removed]
    unfinished, older, unread = list_unfinished(store)
    problems = [*problems, *unreadable, *unread]
    if not entries and not unfinished and not problems:
        fix = "run a step, or adopt something; --profile NAME names another store"
        raise UsageError(Problem(where=str(store.root), what="holds no artifacts", fix=fix))
    roots = build_families(entries)
    families, shown = cut(roots)
    names = group_names(entries)
    shown.sort(key=lambda each: each.record.created, reverse=True)
    documents, _ = embed_records(store, map(_as_node, shown[:MOST_RECORDS]))
    return Catalogue(
        root=str(store.root),
        families=families,
        families_left_out=len(roots) - len(families),
        names=names[:MOST_NAMES],
        names_left_out=len(names[MOST_NAMES:]),
        kinds=count_kinds(entries),
        removed=len(removed),
        unfinished=unfinished,
        unfinished_left_out=older,
        problems=problems,
        documents=documents,
        documents_left_out=len(entries) - len(documents),
    )


def render_catalogue(catalogue: Catalogue) -> str:
    """The page of a store."""
    name = Path(catalogue.root).name or catalogue.root
    return render_sealed(
        "catalogue.html.j2",
        of=catalogue.root,
        documents=catalogue.documents,
        left_out=catalogue.documents_left_out,
        title=name,
        page=catalogue,
        families=len(catalogue.families) + catalogue.families_left_out,
        removed=catalogue.removed,
        most_problems=MOST_PROBLEMS,
        version=importlib.metadata.version("nemotron-style"),
    )


def read_removed(store: Store) -> tuple[list[Entry], list[Problem]]:
    """Artifacts of which the record is left, and why others of them cannot be read."""
    entries: list[Entry] = []
    problems: list[Problem] = []
    for ref in sorted(removed_refs(store.layout)):
        try:
            tombstone = read_tombstone(store.layout, ref)
        except ArtifactError as error:
            problems += error.problems
            continue
        if tombstone:
            entries.append(Entry(tombstone.record, tombstone.describe()))
    return entries, problems


def build_families(entries: Iterable[Entry]) -> list[Branch]:
    """The branches that hang below no other one, those with the newest work first."""
    made: dict[str, list[Entry]] = defaultdict(list)
    for entry in entries:
        producer = entry.record.producer
        made[f"run {producer.run_id}" if producer else entry.record.ref].append(entry)
    branches = [Branch(sorted(outputs, key=_by_name)) for outputs in made.values()]
    home = {each.record.ref: branch for branch in branches for each in branch.outputs}
    roots: list[Branch] = []
    placed: set[int] = set()
    # The oldest first, and only below what has its place: whatever records say, there is no circle.
    for branch in sorted(branches, key=lambda each: each.main.created):
        edge = find_parent(branch.main.inputs)
        above = home.get(edge.ref) if edge else None
        if edge and above and id(above) in placed:
            branch.parent = edge.ref
            above.children.append(branch)
        else:
            roots.append(branch)
        placed.add(id(branch))
    for branch in sorted(branches, key=lambda each: each.main.created, reverse=True):
        branch.children.sort(key=lambda each: each.newest, reverse=True)
        below = (each.newest for each in branch.children)
        branch.newest = max([each.record.created for each in branch.outputs] + list(below))
    return sorted(roots, key=lambda each: each.newest, reverse=True)


def find_parent(inputs: Sequence[Edge]) -> Edge | None:
    """The input whose line a run continues: the model it went on from, else its first input."""
    by_slot = {edge.slot: edge for edge in inputs}
    models = (by_slot[slot] for slot in MODEL_SLOTS if slot in by_slot)
    return next(models, inputs[0] if inputs else None)


def cut(roots: Sequence[Branch]) -> tuple[list[Branch], list[Entry]]:
    """The families that there is room for, cut to size, and all artifacts in them.

    Level by level, so every family that is shown has its first branches.
    """
    families = list(roots[:MOST_BRANCHES])
    room = MOST_BRANCHES - len(families)
    level, shown = deque((branch, 1) for branch in families), []
    total = 0
    while level:
        branch, depth = level.popleft()
        total += 1
        shown += branch.outputs
        kept = min(len(branch.children), MOST_CHILDREN, room) if depth < DEEPEST else 0
        room -= kept
        branch.left_out = sum(_count(child) for child in branch.children[kept:])
        del branch.children[kept:]
        level.extend((child, depth + 1) for child in branch.children)
    for branch in families:
        branch.is_open = True
        if total <= MOST_OPEN:
            for each in _walk(branch):
                each.is_open = True
    return families, shown


def group_names(entries: Iterable[Entry]) -> list[NamedGroup]:
    """The versions of each name, by the newest that is there, the latest first."""
    by_name: dict[str, list[Entry]] = defaultdict(list)
    for entry in entries:
        by_name[entry.record.name].append(entry)
    groups = []
    for versions in by_name.values():
        there = [each for each in versions if not each.removed]
        newest = max(there or versions, key=lambda each: each.record.version)
        groups.append(NamedGroup(newest, len(there), len(versions) - len(there)))
    return sorted(groups, key=lambda group: group.newest.record.created, reverse=True)


def count_kinds(entries: Iterable[Entry]) -> list[tuple[str, int, int]]:
    """Kind, number and bytes of what is there, the largest first."""
    totals: dict[str, list[int]] = {}
    for entry in entries:
        if not entry.removed:
            total = totals.setdefault(entry.record.kind, [0, 0])
            total[0] += 1
            total[1] += entry.record.size
    rows = [(kind, count, size) for kind, (count, size) in totals.items()]
    return sorted(rows, key=lambda row: row[2], reverse=True)


def _as_node(entry: Entry) -> Node:
    record = entry.record
    return Node(record.ref, record.kind, record.digest, record, entry.removed)


def _walk(branch: Branch) -> Iterator[Branch]:
    pending = [branch]  # no recursion: a chain may be longer than Python's stack
    while pending:
        each = pending.pop()
        yield each
        pending += each.children


def _count(branch: Branch) -> int:
    return sum(1 for _ in _walk(branch))


def _by_name(entry: Entry) -> tuple[int, str]:
    """The output that gave the name first: those of other slots have longer ones."""
    return len(entry.record.name), entry.record.name
