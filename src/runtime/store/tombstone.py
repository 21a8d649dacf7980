"""What stays of an artifact that was removed: its record, and who removed it, when.

A tombstone first stands in ``index/removing``, where it hides the artifact from everybody who
looks for an input, and can be taken back. Renamed to ``index/removed`` it is final: the content
goes, and the version number is never handed out again.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nemotron_style.runtime.errors import ArtifactError, Problem, RefError
from nemotron_style.runtime.store.layout import Layout
from nemotron_style.runtime.store.record import (
    Record,
    parse_sealed,
    read_plain,
    render_sealed,
    validate_record,
)
from nemotron_style.runtime.store.ref import NamedRef, from_key, parse_ref
from nemotron_style.runtime.store.roots.files import lexists, on_disk


@dataclass(frozen=True)
class Tombstone:
    """An artifact that was removed; ``owner`` identifies the process that set out to do it."""

    record: Record
    by: str
    at: str
    owner: dict[str, Any]

    @property
    def ref(self) -> str:
        """``name:v3``."""
        return self.record.ref

    def describe(self) -> str:
        """``was removed by ada@login at 2026-02-03T10:11:12+00:00``."""
        return f"was removed by {self.by} at {self.at}"

    def explain(self) -> Problem:
        """What to tell whoever asks for the content, and how it can be had again."""
        return Problem(where=self.ref, what=self.describe(), fix=suggest_making(self.record))


def suggest_making(record: Record) -> str:
    """The command that makes, or brings in, this content again, under a new version."""
    if record.producer:
        words = f"steps run {record.producer.step} -c {record.producer.config_name}"
        return f"make it again, as a new version: nemotron-style {words}"
    if record.origin:
        words = f"adopt {record.origin.source} --kind {record.kind} --name {record.name}"
        words += " --reference" if record.is_referenced else ""
        return f"bring it in again, as a new version: nemotron-style artifacts {words}"
    return "restore it from a copy of the store"


def render_tombstone(tombstone: Tombstone) -> str:
    """The sealed text of a tombstone."""
    record = tombstone.record.model_dump(mode="json")
    facts = {"by": tombstone.by, "at": tombstone.at, "owner": tombstone.owner}
    return render_sealed({"record": record, "removed": facts})


def read_tombstone(layout: Layout, ref: str) -> Tombstone | None:
    """The tombstone of ``name:v3``; None when there is none.

    Raises ArtifactError for one that cannot be read or is that of another artifact.
    """
    # In this order: it is renamed from the first to the second.
    for path in (layout.removing(ref), layout.removed(ref)):
        with suppress(FileNotFoundError):
            return parse_tombstone(path)
    return None


def parse_tombstone(path: Path) -> Tombstone:
    """The tombstone in a file; raises FileNotFoundError and ArtifactError like a record."""
    body = parse_sealed(read_plain(path), where=str(path))
    record = validate_record(body["record"], where=str(path))
    if record.ref != from_key(path.name):
        what, fix = f"the tombstone is that of {record.ref}", "restore it from a copy of the store"
        raise ArtifactError(Problem(where=str(path), what=what, fix=fix))
    return Tombstone(record, **body["removed"])


def is_removed(layout: Layout, ref: str) -> bool:
    """Whether nobody may use ``name:v3`` any more: it is removed, or about to be."""
    return lexists(layout.removing(ref)) or lexists(layout.removed(ref))


def removed_refs(layout: Layout, name: str = "") -> set[str]:
    """The refs of all artifacts that are removed or about to be, or of those of one name."""
    refs: set[str] = set()
    for folder in ("removing", "removed"):
        place = layout.index / folder
        there = place.iterdir() if on_disk(place) else place.glob(f"{name}@*" if name else "*")
        with suppress(FileNotFoundError):
            refs |= {from_key(each.name) for each in there}
    return {ref for ref in refs if not name or ref.startswith(f"{name}:")}


def removed_records(layout: Layout) -> Iterator[Record]:
    """The records of all tombstones that can be read."""
    for ref in sorted(removed_refs(layout)):
        if tombstone := find_tombstone(layout, ref):
            yield tombstone.record


def find_tombstone(layout: Layout, ref: str) -> Tombstone | None:
    """:func:`read_tombstone` for any word: None too where it is no ref, or cannot be read."""
    try:
        parsed = parse_ref(ref)
        is_version = isinstance(parsed, NamedRef) and parsed.version is not None
        return read_tombstone(layout, ref) if is_version else None
    except (ArtifactError, RefError):
        return None
