"""How a staged directory becomes an artifact, whole or not at all.

The order is the promise:

1. hash every file, ask the disk to keep it, take write permission away;
2. claim a version by exclusive create; a claim is never given out again, so a version that
   came to nothing leaves a gap, and ``latest`` cannot go back;
3. write the record's text as an intent, beside other attempts to commit the same slot;
4. rename the directory to its place; without a record it is not an artifact yet;
5. link the text to the key of the producer's slot (or of the adopted content): it is decided;
6. write the keys of the index, then the record, and drop the intent.

After a crash in 1 to 3 the staged directory is still there, to be committed again. After 4 the
intent tells what the renamed directory is, so it can be decided and finished by anyone. After 5
only what the key says is ever written, so any number of processes may finish it at once.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Unpack

from nemotron_style.runtime import atomic
from nemotron_style.runtime.errors import ArtifactError, Problem
from nemotron_style.runtime.store.digest import (
    RECORD_NAME,
    Hashed,
    digest_files,
    directories,
    find_files,
    hash_file,
)
from nemotron_style.runtime.store.index import read_times, write_keys, write_times
from nemotron_style.runtime.store.layout import Layout, is_committed, versions_in
from nemotron_style.runtime.store.record import (
    Artifact,
    Evidence,
    Record,
    load_artifact,
    parse_record,
    render_record,
    to_plain,
)
from nemotron_style.runtime.store.ref import check_word
from nemotron_style.runtime.store.verify import verify_files


def draft_record(
    hashed: Sequence[Hashed], *, name: str, kind: str, **evidence: Unpack[Evidence]
) -> Record:
    """The record of these files, but for its version, producer and inputs.

    Raises:
        ArtifactError: the evidence holds something that JSON cannot.
    """
    files = tuple(item.file for item in sorted(hashed, key=lambda item: item.file.path))
    origin = evidence.pop("origin", None)
    told = {field: to_plain(value, key=field) for field, value in evidence.items()}
    created = datetime.now(UTC).isoformat(timespec="microseconds")
    return Record.model_validate(
        {
            "name": name,
            "version": 0,
            "kind": check_word(kind, "kind"),
            "created": created,
            "digest": digest_files(files),
            "files": files,
            "origin": origin,
            **told,
        }
    )


def seal_tree(staged: Path, scratch: Path) -> list[Hashed]:
    """Hash the files of a staged tree, make them durable and read-only (step 1).

    Raises:
        ArtifactError: something in it cannot be committed; nothing was changed then.
    """
    found = find_files(staged)
    if (staged / RECORD_NAME).exists():
        raise ArtifactError(
            Problem(
                where=str(staged),
                key=RECORD_NAME,
                what="is the name of the record, which the store writes",
            )
        )
    for file in found:
        _protect(file.source, scratch)
    hashed = [hash_file(file, durable=True) for file in found]
    for directory in directories(staged):
        atomic.sync(directory)
    return hashed


def commit_tree(layout: Layout, staged: Path, draft: Record, hashed: list[Hashed]) -> Artifact:
    """Make a sealed tree an artifact (steps 2 to 6).

    ``draft`` is the record but for its version. When its key was used before and what that says
    is whole, that artifact is the answer and ``staged`` is thrown away.
    """
    record = draft.model_copy(update={"version": _claim_version(layout, draft.name)})
    text = render_record(record)
    directory = layout.version(record.name, record.version)
    key = key_of(layout, record)
    if key is None:
        atomic.move_dir(staged, directory)
        return _finish(layout, record, text, hashed)
    intent = layout.intent(key, record.ref)
    atomic.write_text(intent, text, scratch=layout.staging)
    atomic.move_dir(staged, directory)
    artifact = _decide(layout, key, text) or _finish(layout, record, text, hashed)
    if artifact.path != directory:
        discard(layout, directory)
    intent.unlink(missing_ok=True)
    return artifact


def finish_commit(layout: Layout, key: Path) -> Artifact | None:
    """The artifact that was committed under ``key``, finished now if that was cut off.

    None when there is none, or when its files are no longer what they were.
    """
    settled = _complete(layout, key)
    if settled:
        return settled
    for intent in layout.intents(key):
        known = _read_whole(layout, intent)
        if known:
            return _decide(layout, key, render_record(known[0])) or _finish_known(layout, known)
    return None


def key_of(layout: Layout, record: Record) -> Path | None:
    """The key under which this record is committed at most once."""
    if record.producer:
        return layout.output(record.producer.run_id, record.producer.slot)
    return layout.adopted(record.digest, record.kind, record.name) if record.origin else None


def discard(layout: Layout, directory: Path) -> None:
    """Throw a directory away, out of sight first."""
    atomic.make_dir(layout.staging)
    aside = atomic.unique_path(layout.staging, "discarded")
    try:
        os.rename(directory, aside)
    except FileNotFoundError:
        return
    atomic.remove_tree(aside)


def _claim_version(layout: Layout, name: str) -> int:
    taken = versions_in(layout.claims(name)) + versions_in(layout.name(name))
    version = max(taken, default=0) + 1
    # The listing is only where to begin: the exclusive create decides.
    while not atomic.create_empty(layout.claims(name) / f"v{version}"):
        version += 1
    return version


def _decide(layout: Layout, key: Path, text: str) -> Artifact | None:
    """Link ``text`` to ``key``; what was decided before, when that is whole, is returned."""
    if atomic.create_text(key, text, scratch=layout.staging):
        return None
    settled = _complete(layout, key)
    if settled is None:
        atomic.write_text(key, text, scratch=layout.staging)
    return settled


def _complete(layout: Layout, key: Path) -> Artifact | None:
    """The artifact that ``key`` tells of, finished if need be; None unless it is whole."""
    known = _read_whole(layout, key)
    return _finish_known(layout, known) if known else None


def _finish_known(layout: Layout, known: tuple[Record, list[Hashed]]) -> Artifact:
    record, hashed = known
    directory = layout.version(record.name, record.version)
    if is_committed(directory):
        return Artifact(record, directory)
    return _finish(layout, record, render_record(record), hashed)


def _read_whole(layout: Layout, key: Path) -> tuple[Record, list[Hashed]] | None:
    """The record in ``key``, and its files unless they are committed; None when not all there."""
    try:
        record = parse_record(key.read_bytes(), where=str(key))
        directory = layout.version(record.name, record.version)
        if is_committed(directory):
            record = load_artifact(directory).record
            whole = not verify_files(record, directory, times=read_times(layout, record.ref))
            return (record, []) if whole else None
        hashed = [hash_file(found) for found in find_files(directory)]
    except (FileNotFoundError, ArtifactError):
        return None
    return (record, hashed) if tuple(item.file for item in hashed) == record.files else None


def _finish(layout: Layout, record: Record, text: str, hashed: Iterable[Hashed]) -> Artifact:
    directory = layout.version(record.name, record.version)
    write_keys(layout, record)
    write_times(layout, record, hashed)
    atomic.write_text(directory / RECORD_NAME, text, scratch=layout.staging)
    return Artifact(record, directory)


def _protect(path: Path, scratch: Path) -> None:
    state = path.stat()
    if state.st_nlink > 1:
        _copy_apart(path, scratch)
    path.chmod(state.st_mode & 0o555)


def _copy_apart(path: Path, scratch: Path) -> None:
    # Another name of the same file could still be used to write to it.
    atomic.make_dir(scratch)
    copy = atomic.unique_path(scratch, "copy")
    shutil.copyfile(path, copy)
    os.replace(copy, path)
