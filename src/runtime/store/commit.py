"""How a staged directory becomes an artifact, whole or not at all.

The order is the promise:

1. hash every file, ask the disk to keep it, take write permission away; of files that the store
   has already, take another name in place of the copy (``staged/``);
2. claim a version by exclusive create; a claim is never given out again, so a version that
   came to nothing leaves a gap, and ``latest`` cannot go back;
3. write the record's text as an intent, beside other attempts to commit the same slot;
4. rename the directory to its place; without a record it is not an artifact yet;
5. link the text to the key of the producer's slot (of the adopted content, or else of the
   version itself): it is decided;
6. write the keys of the index, then the record, and drop the intent.

After a crash in 1 to 3 the staged directory is still there, to be committed again. After 4 the
intent says what the renamed directory is, so anyone can decide and finish the commit. After 5
only what the key holds is ever written, so any number of processes may finish it at once. The key
stays: it is the second copy of the record, from which a lost one is written again.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Unpack

from nemotron_style.runtime import atomic
from nemotron_style.runtime.errors import ArtifactError, NewerRecord, Problem
from nemotron_style.runtime.store.cache import keep_staged
from nemotron_style.runtime.store.claim import take_version
from nemotron_style.runtime.store.digest import (
    RECORD_NAME,
    Hashed,
    digest_files,
    find_files,
    hash_files,
)
from nemotron_style.runtime.store.index import key_of, read_times, write_keys, write_times
from nemotron_style.runtime.store.layout import Layout, is_committed
from nemotron_style.runtime.store.record import (
    Artifact,
    Evidence,
    Record,
    load_artifact,
    read_record,
    render_record,
)
from nemotron_style.runtime.store.ref import check_word
from nemotron_style.runtime.store.roots import files
from nemotron_style.runtime.store.roots.transfer import forget_upload
from nemotron_style.runtime.store.staged.evidence import to_plain
from nemotron_style.runtime.store.staged.share import note_files
from nemotron_style.runtime.store.tombstone import is_removed
from nemotron_style.runtime.store.verify import verify_files

MEND = "`nemotron-style artifacts gc` mends it"


def draft_record(
    hashed: Sequence[Hashed], *, name: str, kind: str, **evidence: Unpack[Evidence]
) -> Record:
    """The record of these files, but for its version, producer and inputs.

    Raises ArtifactError when the evidence holds something that JSON cannot.
    """
    files = tuple(item.file for item in sorted(hashed, key=lambda item: item.file.path))
    origin = evidence.pop("origin", None)
    plain: dict[str, Any] = {field: to_plain(value, key=field) for field, value in evidence.items()}
    return Record(
        name=name,
        version=0,
        kind=check_word(kind, "kind"),
        created=datetime.now(UTC).isoformat(timespec="microseconds"),
        digest=digest_files(files),
        files=files,
        origin=origin,
        **plain,
    )


def commit_tree(layout: Layout, staged: Path, draft: Record, hashed: list[Hashed]) -> Artifact:
    """Make a sealed tree an artifact (steps 2 to 6).

    ``draft`` is the record but for its version. When an artifact was committed under its key
    before, and is whole, it is returned and ``staged`` is discarded.
    """
    record = draft.model_copy(update={"version": take_version(layout, staged, draft)})
    text = render_record(record)
    directory = layout.version(record.name, record.version)
    key = key_of(layout, record)
    # The intent before the rename: a crash between the two must not leave a directory at a version
    # that nobody can tell from a committed one that lost its record.
    intent = layout.intent(key, record.ref)
    files.write_text(intent, text, scratch=layout.staging)
    times = files.place_tree(staged, directory)
    if times is None:
        what = "something is there that no commit put there"
        raise ArtifactError(Problem(where=str(directory), what=what, fix="move it elsewhere"))
    if not files.on_disk(intent) and not files.lexists(intent):
        what = "took so long that it was taken for abandoned, and its files were removed"
        raise ArtifactError(Problem(where=record.ref, what=what, fix="run the same command again"))
    seen = [replace(each, mtime_ns=times.get(each.file.path, each.mtime_ns)) for each in hashed]
    artifact = _decide(layout, key, text) or _finish(layout, record, text, seen)
    if artifact.path != directory:
        discard(layout, directory)
    intent.unlink(missing_ok=True)
    _keep_copy(layout, staged, artifact)
    return artifact


def finish_commit(layout: Layout, key: Path) -> Artifact | None:
    """The artifact that was committed under ``key``; a commit that a crash cut off is finished.

    None when there is none, or when its files are no longer what they were.
    """
    artifact = _finish_decided(layout, key)
    intents = iter([] if artifact else layout.intents(key))
    while artifact is None and (intent := next(intents, None)):
        artifact = _finish_intended(layout, key, intent)
    return artifact


def read_decision(layout: Layout, key: Path) -> Record:
    """The record that was decided under ``key``.

    Raises FileNotFoundError when there is no key, and ArtifactError when it cannot be read or
    holds a record that belongs under another key: whoever believed it would get another artifact.
    """
    record = read_record(key)
    if key_of(layout, record) != key:
        what = f"the key holds the record of {record.ref}, which belongs elsewhere"
        raise ArtifactError(Problem(where=str(key), what=what, fix=MEND))
    return record


def load_committed(directory: Path) -> Artifact | None:
    """The artifact of a version; None when it is not committed. Raises ArtifactError otherwise."""
    if files.on_disk(directory) and not is_committed(directory):
        return None
    try:
        return load_artifact(directory)
    except FileNotFoundError:
        return None


def discard(layout: Layout, directory: Path) -> None:
    """Remove a directory, which is renamed out of sight first: no reader sees a part of it."""
    with suppress(FileNotFoundError):
        aside = files.remove_visible(directory, layout.staging, "discarded", first=RECORD_NAME)
        if aside:
            atomic.remove_tree(aside)


def _decide(layout: Layout, key: Path, text: str) -> Artifact | None:
    """Link ``text`` to ``key``; the artifact of an earlier decision instead, when it is whole."""
    # The link is the moment of decision: of several writers exactly one creates the key.
    if files.create_text(key, text, scratch=layout.staging):
        return None
    artifact = _finish_decided(layout, key)
    if artifact is None:  # decided before, but its files were damaged or removed since
        files.write_text(key, text, scratch=layout.staging)
    return artifact


def _finish_decided(layout: Layout, key: Path) -> Artifact | None:
    """The artifact whose record ``key`` holds, finished if need be; None unless it is whole."""
    try:
        record = read_decision(layout, key)
    except NewerRecord:  # it is sound, and another must not take its place
        raise
    except (FileNotFoundError, ArtifactError):
        return None
    whole = _check_whole(layout, record)
    return _finish_whole(layout, whole) if whole else None


def _finish_intended(layout: Layout, key: Path, intent: Path) -> Artifact | None:
    """Decide and finish the commit that ``intent`` holds; None unless its files are whole."""
    try:
        record = read_record(intent)
    except (FileNotFoundError, ArtifactError):
        return None
    whole = _check_whole(layout, record) if key_of(layout, record) == key else None
    if whole is None:
        return None
    return _decide(layout, key, render_record(record)) or _finish_whole(layout, whole)


def _finish_whole(layout: Layout, whole: tuple[Record, list[Hashed]]) -> Artifact:
    record, hashed = whole
    directory = layout.version(record.name, record.version)
    if not hashed or is_committed(directory):
        return Artifact(record, directory)
    return _finish(layout, record, render_record(record), hashed)


def _check_whole(layout: Layout, record: Record) -> tuple[Record, list[Hashed]] | None:
    """The record, and its files unless they are committed; None when they are not all there."""
    if is_removed(layout, record.ref):
        return None
    directory = layout.version(record.name, record.version)
    try:
        if artifact := load_committed(directory):
            is_it = artifact.record == record and is_whole(layout, record)
            return (record, []) if is_it else None
        found = find_files(directory, referenced=record.is_referenced)
        if [file.path for file in found] != [file.path for file in record.files]:
            return None  # and none of it is hashed, which would take long
        hashed = hash_files(found)
    except (FileNotFoundError, ArtifactError):
        return None
    return (record, hashed) if tuple(item.file for item in hashed) == record.files else None


def is_whole(layout: Layout, record: Record) -> bool:
    """Whether the files of a committed artifact are those of its record, as far as times tell."""
    directory = layout.version(record.name, record.version)
    return not verify_files(record, directory, times=read_times(layout, record.ref))


def _finish(layout: Layout, record: Record, text: str, hashed: Iterable[Hashed]) -> Artifact:
    directory = layout.version(record.name, record.version)
    # Keys before the record, which makes the artifact visible: a key without an artifact is
    # skipped by every reader, an artifact without its keys could not be found.
    write_keys(layout, record)
    write_times(layout, record, hashed)
    files.write_text(directory / RECORD_NAME, text, scratch=layout.staging)
    note_files(layout, record)
    return Artifact(record, directory)


def _keep_copy(layout: Layout, staged: Path, artifact: Artifact) -> None:
    """What was uploaded stays here as a copy, for whoever needs it next."""
    if not files.on_disk(layout.root) and staged.is_dir():
        keep_staged(staged, artifact.record, layout.cache)
        forget_upload(staged)
