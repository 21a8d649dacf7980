"""How a staged directory becomes an artifact, whole or not at all.

The order is the promise:

1. hash every file, ask the disk to keep it, take write permission away;
2. claim a version by exclusive create; a claim is never given out again, so a version that
   came to nothing leaves a gap, and ``latest`` cannot go back;
3. rename the directory to its place; without a record it is not an artifact yet;
4. link the record's text to the key of its producer's slot (or of its adopted content). From
   here on the commit is decided: whoever finds the key and no record finishes it;
5. write the keys of the index, then the record.

Steps 1 to 3 leave nothing that is seen, and the next attempt begins anew. Step 5 only writes
what the key already says, so any number of processes may do it at once.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Unpack

from nemotron_style.runtime import disk
from nemotron_style.runtime.artifact import (
    Artifact,
    Evidence,
    Record,
    load_artifact,
    parse_record,
    render_record,
    to_plain,
)
from nemotron_style.runtime.audit import audit
from nemotron_style.runtime.digest import (
    RECORD_NAME,
    Hashed,
    digest_files,
    directories,
    find_files,
    hash_file,
)
from nemotron_style.runtime.errors import ArtifactError, Problem
from nemotron_style.runtime.index import read_times, write_keys, write_times
from nemotron_style.runtime.layout import Layout, is_committed, versions_in
from nemotron_style.runtime.ref import check_word


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
        disk.sync(directory)
    return hashed


def publish(
    layout: Layout, staged: Path, draft: Record, hashed: list[Hashed], *, key: Path | None
) -> Artifact:
    """Make a sealed tree an artifact (steps 2 to 5).

    ``draft`` is the record but for its version. When ``key`` was used before and what it says
    is whole, that artifact is the answer and ``staged`` is thrown away.
    """
    record, directory = _place(layout, staged, draft)
    text = render_record(record)
    if key is not None and not disk.write_new(key, text, scratch=layout.staging):
        settled = settle(layout, key)
        if settled is not None:
            discard(layout, directory)
            return settled
        disk.write(key, text, scratch=layout.staging)
    return _finish(layout, record, text, hashed)


def settle(layout: Layout, key: Path) -> Artifact | None:
    """The artifact that was committed under ``key``, finished now if that was cut off.

    None when there is none, or when its files are no longer what they were.
    """
    try:
        text = key.read_bytes()
        record = parse_record(text, where=str(key))
        directory = layout.version(record.name, record.version)
        if is_committed(directory):
            artifact = load_artifact(directory)
            times = read_times(layout, record.ref)
            return None if audit(artifact.record, directory, times=times) else artifact
        hashed = [hash_file(found) for found in find_files(directory)]
    except (FileNotFoundError, ArtifactError):
        return None
    if tuple(item.file for item in hashed) != record.files:
        return None
    return _finish(layout, record, text.decode(), hashed)


def discard(layout: Layout, directory: Path) -> None:
    """Throw a directory away, out of sight first."""
    disk.make_dir(layout.staging)
    aside = disk.fresh(layout.staging, "discarded")
    try:
        os.rename(directory, aside)
    except FileNotFoundError:
        return
    disk.remove_tree(aside)


def _place(layout: Layout, staged: Path, draft: Record) -> tuple[Record, Path]:
    name = draft.name
    taken = versions_in(layout.claim(name, 1).parent) + versions_in(layout.name(name))
    version = max(taken, default=0)
    while True:
        # The listing is only where to begin: the exclusive create decides.
        version += 1
        if disk.touch_new(layout.claim(name, version)):
            directory = layout.version(name, version)
            if disk.move_dir(staged, directory):
                return draft.model_copy(update={"version": version}), directory


def _finish(layout: Layout, record: Record, text: str, hashed: Iterable[Hashed]) -> Artifact:
    directory = layout.version(record.name, record.version)
    write_keys(layout, record)
    write_times(layout, record, hashed)
    disk.write(directory / RECORD_NAME, text, scratch=layout.staging)
    return Artifact(record, directory)


def _protect(path: Path, scratch: Path) -> None:
    state = path.stat()
    if state.st_nlink > 1:
        _copy_apart(path, scratch)
    path.chmod(state.st_mode & 0o555)


def _copy_apart(path: Path, scratch: Path) -> None:
    # Another name of the same file could still be used to write to it.
    disk.make_dir(scratch)
    copy = disk.fresh(scratch, "copy")
    shutil.copyfile(path, copy)
    os.replace(copy, path)
