"""The keys beside the artifacts, by which they are found without looking at all of them.

A key is an empty file whose name holds all. Keys are written before the record, so a commit that
was cut off leaves keys without an artifact, and readers check whether there is one. The keys of
:func:`keys_of` can be written again from the records.

The file of sizes and times is sealed with a hash, since a changed time in it could hide a
changed file. A file without the seal, from before there was one, is believed.
"""

from __future__ import annotations

import hashlib
import json
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path

from nemotron_style.runtime import atomic
from nemotron_style.runtime.errors import ArtifactError, Problem
from nemotron_style.runtime.store.digest import Hashed
from nemotron_style.runtime.store.layout import Layout
from nemotron_style.runtime.store.record import Record
from nemotron_style.runtime.store.ref import from_key, to_key
from nemotron_style.runtime.store.roots import files

Times = dict[str, list[int]]
_SEAL = ""  # among paths of files: no file has an empty one


def keys_of(layout: Layout, record: Record) -> list[Path]:
    """Every key by which an artifact is found; each can be written again from its record."""
    keys = [layout.digest(record.digest) / to_key(record.ref)]
    for edge in record.inputs:
        up = layout.edges("up", record.digest, record.ref)
        down = layout.edges("down", edge.digest, edge.ref)
        keys.append(up / f"{edge.slot}~{to_key(edge.ref)}")
        keys.append(down / f"{edge.slot}~{to_key(record.ref)}")
    return keys


def key_of(layout: Layout, record: Record) -> Path:
    """The key under which this record is committed at most once."""
    if record.producer:
        return layout.output(record.producer.run_id, record.producer.slot)
    if record.origin:
        return layout.adopted(record.digest, record.kind, record.name)
    return layout.made(record.ref)


def write_keys(layout: Layout, record: Record) -> int:
    """Write the keys of an artifact that are not there; their number."""
    return sum(files.create_empty(key) for key in keys_of(layout, record))


def is_plain_key(key: Path) -> bool:
    """Whether a key is what it was written as: an empty file."""
    state = key.lstat()
    return stat.S_ISREG(state.st_mode) and state.st_size == 0


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
    text = _render_times(times, record.ref)
    files.write_text(layout.times(record.ref), text, scratch=layout.staging)


def read_times(layout: Layout, ref: str) -> Times:
    """Size (bytes) and time (ns) of each file when it was hashed; empty when not known."""
    text, times = _parse_times(layout.times(ref))
    sealed = times.pop(_SEAL, None) is not None
    return {} if sealed and text != _render_times(times, ref) else times


def is_times(path: Path) -> bool:
    """Whether a file holds times, be they those of another artifact."""
    return _SEAL in _parse_times(path)[1]


def _parse_times(path: Path) -> tuple[str, Times]:
    try:
        is_there = path.is_file() if files.on_disk(path) else True  # a bucket is asked once
        text = path.read_text() if is_there else ""
    except (OSError, UnicodeDecodeError):
        return "", {}
    times = atomic.parse_object(text) or {}
    pairs = [value for name, value in times.items() if name != _SEAL]
    sound = all(isinstance(pair, list) and len(pair) == 2 for pair in pairs)
    return (text, times) if sound else ("", {})


def _render_times(times: Times, ref: str) -> str:
    # The ref is sealed too: two artifacts may have files of equal names and sizes.
    seal = hashlib.sha256(json.dumps([ref, times]).encode()).hexdigest()
    return json.dumps({**times, _SEAL: seal})


def entries(directory: Path) -> list[Path]:
    """What is in a directory, by name; nothing when there is none.

    Raises ArtifactError for a directory that cannot be read.
    """
    try:
        return sorted(directory.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        what = f"cannot be read: {error.strerror}"
        raise ArtifactError(Problem(where=str(directory), what=what)) from None
