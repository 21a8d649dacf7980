"""Remove what crashed commits left; never a committed byte, never a version number.

A claim without an artifact stays as a tombstone (it is an empty file): were it removed, its
number could be handed out again while a very slow writer still holds it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import suppress
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
    """What was done: paths removed, refs of commits finished, keys written again."""

    removed: list[str] = field(default_factory=list)
    finished: list[str] = field(default_factory=list)
    keys_written: int = 0


def collect_garbage(layout: Layout, *, grace_s: float) -> Collected:
    """Finish decided commits, then remove leftovers older than ``grace_s`` seconds."""
    done = Collected()
    before = time.time() - grace_s
    _restore_finished(layout, done)
    # Intents first: a version that an intent can finish must not be removed as half-made.
    for intent in entries(layout.index / "intent"):
        _finish_intent(layout, intent, before, done)
    for directory in _versions(layout, committed=False):
        claim = layout.claims(directory.parent.name) / directory.name
        if _last_change(claim if claim.exists() else directory) < before:
            _remove_half_made(layout, directory, done)
    for leftover in entries(layout.staging):
        if _last_change(leftover) < before:
            if leftover.is_dir() and not leftover.is_symlink():
                atomic.remove_tree(leftover)
            else:
                leftover.unlink(missing_ok=True)
            done.removed.append(str(leftover.relative_to(layout.root)))
    for directory in _versions(layout, committed=True):
        with suppress(ArtifactError):  # verify reports an unreadable record
            done.keys_written += write_keys(layout, load_artifact(directory).record)
    return done


def _restore_finished(layout: Layout, done: Collected) -> None:
    """Bring back what an earlier collector moved aside, and whose writer finished it after all."""
    for aside in layout.staging.glob(f"{_ASIDE}-*"):
        if is_committed(aside):
            record = load_artifact(aside).record
            atomic.move_dir(aside, layout.version(record.name, record.version))
            done.finished.append(record.ref)


def _finish_intent(layout: Layout, intent: Path, before: float, done: Collected) -> None:
    ref = from_key(intent.name.partition("~")[2])
    try:
        record = parse_record(intent.read_bytes(), where=str(intent))
        key = key_of(layout, record)
    except (FileNotFoundError, ArtifactError):
        key = None
    if key and resolve.find(layout, ref) is None:
        artifact = finish_commit(layout, key)
        done.finished += [ref] if artifact and artifact.ref == ref else []
    if _last_change(intent) < before:
        intent.unlink(missing_ok=True)


def _remove_half_made(layout: Layout, directory: Path, done: Collected) -> None:
    # Renamed first and looked at again: its writer may be slow and finish at this very moment,
    # and nothing may be removed under a name at which others can see it.
    atomic.make_dir(layout.staging)
    aside = atomic.unique_path(layout.staging, f"{_ASIDE}-{directory.parent.name}@{directory.name}")
    try:
        os.rename(directory, aside)
    except FileNotFoundError:  # another collector was here first
        return
    if is_committed(aside):
        os.rename(aside, directory)
        return
    atomic.remove_tree(aside)
    done.removed.append(str(directory.relative_to(layout.root)))


def _versions(layout: Layout, *, committed: bool) -> Iterator[Path]:
    for name in entries(layout.artifacts):
        for version in versions_in(name):
            if is_committed(name / f"v{version}") == committed:
                yield name / f"v{version}"


def _last_change(path: Path) -> float:
    """When anything in it was last written, in seconds since the epoch; now, when it is gone."""
    newest = 0.0
    try:
        for folder in directories(path) if path.is_dir() else [path]:
            files = list(folder.iterdir()) if folder.is_dir() else []
            newest = max(newest, *(each.lstat().st_mtime for each in (folder, *files)))
    except FileNotFoundError:  # its owner is at work
        return time.time()
    return newest
