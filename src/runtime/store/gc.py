"""Finish and mend what was decided, and remove what crashed commits left.

Never a committed byte is removed, and never a version number: a claim without an artifact stays,
as a very slow writer may still hold it. A directory without a record goes only when an intent says
that its commit was never decided: else it may be an artifact whose record was lost. What cannot be
read or written is skipped and named.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from nemotron_style.runtime import atomic
from nemotron_style.runtime.errors import ArtifactError, NewerRecord, StepsError
from nemotron_style.runtime.store.audit import (
    Decision,
    committed_records,
    directories_of,
    fits_times,
    is_newer,
    is_refuted,
    read_committed,
    read_decisions,
    read_index,
)
from nemotron_style.runtime.store.commit import finish_commit, is_whole, read_decision
from nemotron_style.runtime.store.digest import RECORD_NAME, find_files, hash_file
from nemotron_style.runtime.store.index import (
    entries,
    is_plain_key,
    is_times,
    key_of,
    keys_of,
    write_keys,
    write_times,
)
from nemotron_style.runtime.store.layout import Layout, is_committed
from nemotron_style.runtime.store.record import Record, read_record, render_record
from nemotron_style.runtime.store.ref import from_key, to_key
from nemotron_style.runtime.store.roots import files
from nemotron_style.runtime.store.staged.share import mend_hints
from nemotron_style.runtime.store.verify import verify_files

_ASIDE = re.compile(r"half-made-(?P<key>[^@]+@v\d+)-\w+")


@dataclass
class Collected:
    """What was done: paths removed and their bytes, refs finished, keys mended; what was not.

    ``shared`` are the bytes that equal files save by being stored once.
    """

    removed: list[str] = field(default_factory=list)
    freed: int = 0
    finished: list[str] = field(default_factory=list)
    keys_written: int = 0
    shared: int = 0
    skipped: list[str] = field(default_factory=list)

    def add(self, other: Collected) -> None:
        """Add what another collection did."""
        for name, value in vars(other).items():
            setattr(self, name, getattr(self, name) + value)


def collect_garbage(layout: Layout, *, grace_s: float) -> Collected:
    """Finish and mend what was decided, then remove leftovers older than ``grace_s`` seconds."""
    done = Collected()
    if not layout.staging.is_dir():
        if not layout.artifacts.is_dir():
            return done
        atomic.make_dir(layout.staging)
    before = atomic.read_clock(layout.staging) - grace_s
    before_there = files.read_clock(layout.root / "staging") - grace_s  # by a bucket's own clock
    # First what needs no room: the disk may be full, and all that follows writes.
    _remove_staged(layout, before, done)
    _copy_moved_decisions(layout, done)
    decisions = list(read_decisions(layout))
    decided = {each.record.ref: each.record for each in decisions if each.record}
    for directory in list(directories_of(layout)):
        with _skipping(done, directory):
            _mend_place(layout, directory, decided, done)
    _return_aside(layout, decided, before, done)
    # Intents before half-made directories: what an intent can finish must not be removed.
    for intent in entries(layout.index / "intent"):
        with _skipping(done, intent):
            _finish_intent(layout, intent, decided, before_there, done)
    _mend_decisions(layout, decisions, done)
    _mend_keys(layout, done)
    return done


@contextmanager
def _skipping(done: Collected, path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, StepsError) as error:
        done.skipped.append(f"{path}: {error}")


def _remove_staged(layout: Layout, before: float, done: Collected) -> None:
    for leftover in entries(layout.staging):
        if not _ASIDE.fullmatch(leftover.name) and atomic.last_change(leftover) < before:
            with _skipping(done, leftover):
                remove(leftover, layout.local, done)


def remove(leftover: Path, root: Path, done: Collected) -> None:
    """Remove a file or a directory for good, and note its path and size."""
    size = files.size_on_disk(leftover)
    if leftover.is_dir() and not leftover.is_symlink():
        files.remove_tree(leftover)
    else:
        leftover.unlink(missing_ok=True)
    if files.lexists(leftover):
        raise ArtifactError("cannot be removed")
    done.removed.append(str(leftover.relative_to(root)))
    done.freed += size


def _mend_place(
    layout: Layout, directory: Path, decided: dict[str, Record], done: Collected
) -> None:
    """Write a record again that a version has lost; put aside a version under a wrong name."""
    if directory.is_symlink() or not directory.is_dir() or read_committed(directory):
        return
    ref = f"{directory.parent.name}:{directory.name}"
    foreign = _read_moved(directory / RECORD_NAME)
    own = decided.get(ref)
    if own and (foreign is None or not verify_files(own, directory)):
        if finish_commit(layout, key_of(layout, own)) is None:  # some of its files are damaged
            _write_record(layout, own)
        done.finished.append(ref)
    elif foreign and files.on_disk(directory) and not verify_files(foreign, directory):
        # Its place may be taken by another wrong one (two were swapped), so all go aside first.
        aside = atomic.unique_path(layout.staging, f"half-made-{to_key(foreign.ref)}")
        target = layout.version(foreign.name, foreign.version)
        if not read_committed(target):
            os.rename(directory, aside)


def _write_record(layout: Layout, record: Record) -> None:
    directory = layout.version(record.name, record.version)
    write_keys(layout, record)  # first: a record makes its artifact visible, which needs its keys
    path = directory / RECORD_NAME
    renamed = {each for each in entries(directory) if each.is_file()} - {path}
    renamed -= {directory / file.path for file in record.files}
    if same := [each for each in renamed if _read_moved(each) == record]:
        files.move_text(same[0], path)
    else:
        files.write_text(path, render_record(record), scratch=layout.staging)


def _return_aside(
    layout: Layout, decided: dict[str, Record], before: float, done: Collected
) -> None:
    """Bring back decided versions that this or an earlier collector, cut off, put aside."""
    for aside in entries(layout.staging):
        if not (match := _ASIDE.fullmatch(aside.name)):
            continue
        with _skipping(done, aside):
            ref = from_key(match["key"])
            if ref in decided or is_committed(aside):
                if atomic.move_dir(aside, layout.place(ref)):
                    done.finished.append(ref)
            elif atomic.last_change(aside) < before:
                remove(aside, layout.local, done)


def _finish_intent(
    layout: Layout, intent: Path, decided: dict[str, Record], before: float, done: Collected
) -> None:
    """Finish the commit that an intent began; when it cannot be, remove what it left, if old."""
    ref = from_key(intent.name.partition("~")[2])
    directory = layout.place(ref)
    record = _read_moved(intent)
    key = key_of(layout, record) if record else None
    if key and not is_committed(directory):
        artifact = finish_commit(layout, key)
        if artifact and artifact.ref == ref:
            decided[ref] = artifact.record
            done.finished.append(ref)
    if files.last_change(intent) < before:
        if not files.on_disk(intent):  # first: its writer looks for it before it decides
            intent.unlink(missing_ok=True)
        if directory.is_dir() and ref not in decided and not is_committed(directory):
            _remove_half_made(layout, directory, done)
        intent.unlink(missing_ok=True)


def _remove_half_made(layout: Layout, directory: Path, done: Collected) -> None:
    # Renamed first and looked at again: its writer may be slow and finish at this very moment,
    # and nothing may be removed under a name at which others can see it.
    key = f"{directory.parent.name}@{directory.name}"
    if not files.on_disk(directory):
        if not is_committed(directory) and from_key(key) not in _decided_refs(layout):
            remove(directory, layout.root, done)
        return
    aside = atomic.unique_path(layout.staging, f"half-made-{key}")
    try:
        os.rename(directory, aside)
    except FileNotFoundError:  # another collector was here first
        return
    if is_committed(aside) or from_key(key) in _decided_refs(layout):
        os.rename(aside, directory)
        return
    remove(aside, layout.local, done)
    done.removed[-1] = str(directory.relative_to(layout.root))


def _decided_refs(layout: Layout) -> set[str]:
    return {each.record.ref for each in read_decisions(layout) if each.record}


def _copy_moved_decisions(layout: Layout, done: Collected) -> None:
    """Write each decision that stands under a wrong key under its own, if nothing stands there."""
    for wrong in [each.key for each in read_decisions(layout) if each.record is None]:
        with _skipping(done, wrong):
            if record := _read_moved(wrong):
                key, text = key_of(layout, record), render_record(record)
                done.keys_written += files.create_text(key, text, scratch=layout.staging)


def _mend_decisions(layout: Layout, decisions: list[Decision], done: Collected) -> None:
    """Write each missing or spoiled decision again from its artifact; remove those of no other."""
    spoiled = {each.key for each in decisions if each.record is None and not is_newer(each.key)}
    claimants: dict[Path, list[Record]] = {}
    for record in committed_records(layout):
        claimants.setdefault(key_of(layout, record), []).append(record)
    for key in sorted(spoiled - claimants.keys()):
        with _skipping(done, key):
            moved = _read_moved(key)
            # A decision is never empty, as it is linked when it is written.
            kept_elsewhere = moved and key_of(layout, moved).exists()
            if is_plain_key(key) or is_times(key) or kept_elsewhere:
                remove(key, layout.root, done)
    for key, records in claimants.items():
        if key in spoiled or not key.is_file():
            with _skipping(done, key):
                if key.is_dir():
                    key.rmdir()
                best = max(records, key=lambda record: (is_whole(layout, record), record.version))
                files.write_text(key, render_record(best), scratch=layout.staging)
                done.keys_written += 1


def _read_moved(path: Path) -> Record | None:
    """The sound record in a file, be it out of place; None without one. Raises NewerRecord."""
    try:
        return read_record(path)
    except NewerRecord:
        raise
    except (FileNotFoundError, ArtifactError):
        return None


def _mend_keys(layout: Layout, done: Collected) -> None:
    """Write the keys of all artifacts that are missing or changed; remove those that are wrong."""
    index = read_index(layout)
    wrong = [key for key in index.strays if is_refuted(layout, key, index.known)]
    wrong += [key for key in index.present if key in index.expected and not is_plain_key(key)]
    for key in wrong:
        with _skipping(done, key):
            if _is_ours(layout, key):
                remove(key, layout.root, done)
    for record in index.known.values():
        with _skipping(done, layout.version(record.name, record.version)):
            done.keys_written += _write_keys_of(layout, record)
    with _skipping(done, layout.index / "file"):
        done.shared = mend_hints(layout, index.known.values())


def _is_ours(layout: Layout, path: Path) -> bool:
    """Whether a file is of the index and kept elsewhere too: others may be of an artifact."""
    if is_plain_key(path) or is_times(path) or path.parent == layout.index / "times":
        return True
    record = _read_moved(path)
    return record is not None and read_decision(layout, key_of(layout, record)) == record


def _write_keys_of(layout: Layout, record: Record) -> int:
    directory = layout.version(record.name, record.version)
    if not is_committed(directory):
        return 0
    claim = layout.claims(record.name) / directory.name
    for key in (*keys_of(layout, record), layout.times(record.ref)):
        if key.is_dir():
            key.rmdir()  # the strays in it are gone; others stop this
    written = write_keys(layout, record) + files.create_empty(claim)
    if not fits_times(layout, record) and not verify_files(record, directory):
        found = find_files(directory, referenced=record.is_referenced)
        write_times(layout, record, [hash_file(each) for each in found])
        return written + 1
    return written
