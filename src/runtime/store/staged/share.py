"""Equal files of a store in a folder are stored once.

A staged file that an artifact has already becomes a second name (a hard link) of that one.
``index/file/<sha256>`` tells which artifact has a file of this content. That is a hint: what it
leads to is compared with the record, and with the size and time at which the file was hashed,
before a copy is given up for it. Without a hint, or with a wrong one, the copy stays, and so it
does where the disk has no hard links, where the rights of the two files differ, and in a bucket.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from nemotron_style.runtime import atomic
from nemotron_style.runtime.errors import ArtifactError, RefError
from nemotron_style.runtime.store.digest import File, Hashed
from nemotron_style.runtime.store.index import Times, entries, read_times
from nemotron_style.runtime.store.layout import Layout
from nemotron_style.runtime.store.record import Record, load_artifact
from nemotron_style.runtime.store.roots import files

SMALLEST = 64 << 10
"""Bytes from which on a file is shared; a hint takes 4 KiB on most disks."""


def share_files(layout: Layout, staged: Path, hashed: Sequence[Hashed]) -> tuple[list[Hashed], int]:
    """Put names of committed files in the places of equal ones in a sealed tree.

    ``hashed`` comes back with the times of these files, and how many bytes they have.
    """
    hints = _Hints(layout)
    result, shared, folders = [], 0, set()
    for one in hashed:
        target = staged / one.file.path
        changed = _share(hints, target, one.file) if _is_worth_it(layout, one.file) else None
        if changed is not None:
            shared += one.file.size
            folders.add(target.parent)
        result.append(one if changed is None else replace(one, mtime_ns=changed))
    for folder in folders:
        atomic.sync(folder)
    return result, shared


def note_files(layout: Layout, record: Record) -> None:
    """Write hints to those files of an artifact that nothing else has a name for."""
    hints = _Hints(layout)
    for file, state in _states(layout, record):
        # With several names it is shared, and has a hint, or can be changed outside of the store.
        if state.st_nlink == 1 and not hints.find(file.sha256):
            hints.write(file, record.ref)


def forget_files(
    layout: Layout, gone: Iterable[Record], read_records: Callable[[], Iterable[Record]]
) -> None:
    """Let each hint to an artifact that is ``gone`` tell another that has the file, or remove it.

    ``read_records`` gives the artifacts that are left, and is asked only where there is need.
    """
    refs = {record.ref: record for record in gone} if files.on_disk(layout.root) else {}
    held = {file.sha256 for record in refs.values() for file in _worth_sharing(layout, record)}
    stale = {each for each in held if _Hints(layout).read(each)[0] in refs}
    if stale:
        mend_hints(layout, read_records(), only=stale)


def mend_hints(
    layout: Layout, records: Iterable[Record], *, only: Collection[str] | None = None
) -> int:
    """Remove hints to what is gone or changed, and write those that are missing.

    ``records`` are those of all artifacts that are there; ``only`` are hashes of files, if not
    all are to be looked at. The bytes that sharing saves come back.
    """
    if not files.on_disk(layout.root):
        return 0
    known = {record.ref: record for record in records}
    hints = _Hints(layout, known)
    for sha256 in only or [each.name for each in entries(layout.index / "file")]:
        if not hints.find(sha256):
            layout.file(sha256).unlink(missing_ok=True)
    names: Counter[tuple[int, int]] = Counter()
    owners: dict[tuple[int, int], tuple[File, str, int]] = {}
    for record in known.values():
        for file, state in _states(layout, record, only):
            names[inode := (state.st_dev, state.st_ino)] += 1
            owners[inode] = file, record.ref, state.st_nlink
    for inode, (file, ref, links) in owners.items():
        if names[inode] == links and not hints.find(file.sha256):
            hints.write(file, ref)
    return sum(owners[inode][0].size * (count - 1) for inode, count in names.items())


class _Hints:
    """The hints of a store; ``known`` are the records by ref, where they were read already."""

    def __init__(self, layout: Layout, known: Mapping[str, Record] | None = None) -> None:
        self.layout, self._known = layout, known
        self._files: dict[str, tuple[dict[str, File], Times]] = {}

    def read(self, sha256: str) -> tuple[str, str]:
        """The ref and the path that a hint tells, or empty ones."""
        try:
            ref, path = json.loads(self.layout.file(sha256).read_text())
            return str(ref), str(path)
        except (OSError, ValueError, TypeError):
            return "", ""

    def find(self, sha256: str) -> tuple[Path, int] | None:
        """A committed file of this content, as it was when it was hashed, and its time (ns)."""
        ref, path = self.read(sha256)
        try:
            listed, times = self._read_files(ref)
            place = self.layout.place(ref) / path
            state = place.lstat()
        except (OSError, ArtifactError, RefError, KeyError):
            return None
        is_equal = path in listed and listed[path].sha256 == sha256
        is_unchanged = times.get(path) == [state.st_size, state.st_mtime_ns]
        return (place, state.st_mtime_ns) if is_equal and is_unchanged else None

    def write(self, file: File, ref: str) -> None:
        """Tell that an artifact has this file."""
        text, hint = json.dumps([ref, file.path]), self.layout.file(file.sha256)
        with suppress(OSError):  # on a full disk the artifact matters, not the hint
            files.write_text(hint, text, scratch=self.layout.staging, durable=False)

    def _read_files(self, ref: str) -> tuple[dict[str, File], Times]:
        if ref not in self._files:
            known = self._known
            record = load_artifact(self.layout.place(ref)).record if known is None else known[ref]
            listed = {file.path: file for file in record.files}
            self._files[ref] = listed, read_times(self.layout, ref)
        return self._files[ref]


def _share(hints: _Hints, target: Path, file: File) -> int | None:
    """Let ``target`` be a name of an equal file; its time (ns), or None where it stays as it is."""
    found = hints.find(file.sha256)
    if found is None:
        return None
    place, changed = found
    ours = target.lstat()
    aside = atomic.unique_path(hints.layout.staging, "shared")
    # It may be removed at this moment, have all the names it can have, or not be linked at all.
    with suppress(OSError):
        os.link(place, aside, follow_symlinks=False)
        try:
            theirs = aside.lstat()  # under this name nobody else removes or replaces it
            is_unchanged = (theirs.st_size, theirs.st_mtime_ns) == (file.size, changed)
            if is_unchanged and _rights(theirs) == _rights(ours):
                os.replace(aside, target)
                return changed
        finally:
            aside.unlink(missing_ok=True)  # is there still when both were one file before
    return None


def _rights(state: os.stat_result) -> tuple[int, int, int]:
    return state.st_mode, state.st_uid, state.st_gid


def _states(
    layout: Layout, record: Record, only: Collection[str] | None = None
) -> Iterator[tuple[File, os.stat_result]]:
    """The files of an artifact that are worth sharing, as they are on the disk."""
    place = layout.place(record.ref)
    for file in _worth_sharing(layout, record):
        if only is None or file.sha256 in only:
            with suppress(OSError):
                yield file, (place / file.path).lstat()


def _worth_sharing(layout: Layout, record: Record) -> list[File]:
    return [] if record.is_referenced else [f for f in record.files if _is_worth_it(layout, f)]


def _is_worth_it(layout: Layout, file: File) -> bool:
    return file.size >= SMALLEST and files.on_disk(layout.root)
