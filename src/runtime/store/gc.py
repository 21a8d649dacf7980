"""Remove what crashed commits left; never a committed byte, never a version number.

A claim without an artifact stays as a tombstone (it is an empty file): were it removed, its
number could be handed out again while a very slow writer still holds it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from nemotron_style.runtime import atomic
from nemotron_style.runtime.errors import ArtifactError
from nemotron_style.runtime.store import resolve
from nemotron_style.runtime.store.commit import finish_commit, key_of
from nemotron_style.runtime.store.digest import directories
from nemotron_style.runtime.store.index import entries, write_keys
from nemotron_style.runtime.store.layout import Layout, is_committed, versions_in
from nemotron_style.runtime.store.record import load_artifact, parse_record
from nemotron_style.runtime.store.ref import from_key

_ASIDE = "half-made"


@dataclass
class Collected:
    """What was done: directories removed, commits finished, keys written again."""

    removed: list[str] = field(default_factory=list)
    finished: list[str] = field(default_factory=list)
    keys_written: int = 0


def collect_garbage(layout: Layout, *, grace_s: float) -> Collected:
    """Finish decided commits, then remove leftovers older than ``grace_s`` seconds."""
    done = Collected()
    before = time.time() - grace_s
    _bring_back(layout, done)
    for intent in entries(layout.index / "intent"):
        _finish(layout, intent, before, done)
    for directory in list(_half_made(layout)):
        claim = layout.claims(directory.parent.name) / directory.name
        if _touched(claim if claim.exists() else directory) < before:
            _remove_half_made(layout, directory, done)
    for leftover in entries(layout.staging):
        if _touched(leftover) < before:
            _remove(leftover)
            done.removed.append(str(leftover.relative_to(layout.root)))
    _write_keys(layout, done)
    return done


def _finish(layout: Layout, intent: Path, before: float, done: Collected) -> None:
    ref = from_key(intent.name.partition("~")[2])
    try:
        record = parse_record(intent.read_bytes(), where=str(intent))
        key = key_of(layout, record)
    except (FileNotFoundError, ArtifactError):
        key = None
    if key and resolve.find(layout, ref) is None:
        settled = finish_commit(layout, key)
        done.finished += [ref] if settled and settled.ref == ref else []
    if _touched(intent) < before:
        intent.unlink(missing_ok=True)


def _half_made(layout: Layout) -> Iterator[Path]:
    for name in entries(layout.artifacts):
        for version in versions_in(name):
            if not is_committed(name / f"v{version}"):
                yield name / f"v{version}"


def _remove_half_made(layout: Layout, directory: Path, done: Collected) -> None:
    atomic.make_dir(layout.staging)
    aside = atomic.unique_path(layout.staging, f"{_ASIDE}-{directory.parent.name}@{directory.name}")
    try:
        os.rename(directory, aside)
    except FileNotFoundError:  # another collector was here first
        return
    if is_committed(aside):  # its writer was only slow, and finished just now
        os.rename(aside, directory)
        return
    atomic.remove_tree(aside)
    done.removed.append(str(directory.relative_to(layout.root)))


def _bring_back(layout: Layout, done: Collected) -> None:
    for aside in layout.staging.glob(f"{_ASIDE}-*"):
        if is_committed(aside):
            record = load_artifact(aside).record
            atomic.move_dir(aside, layout.version(record.name, record.version))
            done.finished.append(record.ref)


def _touched(path: Path) -> float:
    """When anything in it was last written, in seconds since the epoch; now, when it is gone."""
    places = directories(path) if path.is_dir() else iter([path])
    newest = 0.0
    try:
        for place in places:
            files = list(place.iterdir()) if place.is_dir() else []
            times = (each.lstat().st_mtime for each in (place, *files))
            newest = max(newest, *times)
    except FileNotFoundError:  # its owner is at work
        return time.time()
    return newest


def _remove(leftover: Path) -> None:
    if leftover.is_dir() and not leftover.is_symlink():
        atomic.remove_tree(leftover)
    else:
        leftover.unlink(missing_ok=True)


def _write_keys(layout: Layout, done: Collected) -> None:
    for name in entries(layout.artifacts):
        for version in versions_in(name):
            directory = name / f"v{version}"
            if is_committed(directory):
                done.keys_written += _rewrite(layout, directory)


def _rewrite(layout: Layout, directory: Path) -> int:
    try:
        return write_keys(layout, load_artifact(directory).record)
    except ArtifactError:
        return 0
