"""The keys beside the artifacts, by which they are found without looking at all of them.

A key is an empty file whose name holds all. Keys are written before the record, so a commit that
was cut off leaves keys without an artifact, and readers check whether there is one. The keys of
:func:`keys_of` can be written again from the records.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path

from nemotron_style.runtime import atomic
from nemotron_style.runtime.store.digest import Hashed
from nemotron_style.runtime.store.layout import Layout
from nemotron_style.runtime.store.record import Record
from nemotron_style.runtime.store.ref import from_key, to_key

Times = dict[str, list[int]]


def keys_of(layout: Layout, record: Record) -> list[Path]:
    """Every key by which an artifact is found; each can be written again from its record."""
    keys = [layout.digest(record.digest) / to_key(record.ref)]
    for edge in record.inputs:
        up = layout.edges("up", record.digest, record.ref)
        down = layout.edges("down", edge.digest, edge.ref)
        keys.append(up / f"{edge.slot}~{to_key(edge.ref)}")
        keys.append(down / f"{edge.slot}~{to_key(record.ref)}")
    return keys


def write_keys(layout: Layout, record: Record) -> int:
    """Write the keys of an artifact that are not there; their number."""
    return sum(atomic.create_empty(key) for key in keys_of(layout, record))


def read_digests(layout: Layout, prefix: str) -> list[str]:
    """The digests that begin with these hex digits."""
    found = entries(layout.index / "digest")
    return [f"sha256:{entry.name}" for entry in found if entry.name.startswith(prefix)]


def read_refs(layout: Layout, digest: str) -> list[str]:
    """Refs that have, or were about to have, this content."""
    return [from_key(entry.name) for entry in entries(layout.digest(digest))]


def read_edges(layout: Layout, direction: str, digest: str, ref: str) -> Iterator[tuple[str, str]]:
    """(slot, ref) of one artifact's inputs (``up``) or of what was made from it (``down``)."""
    for entry in entries(layout.edges(direction, digest, ref)):
        slot, _, key = entry.name.partition("~")
        yield slot, from_key(key)


def write_times(layout: Layout, record: Record, hashed: Iterable[Hashed]) -> None:
    """Remember size and time of each file as they were when it was hashed."""
    times = {item.file.path: [item.file.size, item.mtime_ns] for item in hashed}
    atomic.write_text(layout.times(record.ref), json.dumps(times), scratch=layout.staging)


def read_times(layout: Layout, ref: str) -> Times:
    """Size (bytes) and time (ns) of each file when it was hashed; empty when not known."""
    try:
        times = json.loads(layout.times(ref).read_text())
    except (OSError, ValueError):
        return {}
    return times if isinstance(times, dict) else {}


def entries(directory: Path) -> list[Path]:
    """What is in a directory, by name; nothing when there is none."""
    return sorted(directory.iterdir()) if directory.is_dir() else []
