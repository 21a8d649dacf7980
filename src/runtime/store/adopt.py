"""Bring content from elsewhere into the store: a local path, or a URI by fsspec.

The content is copied, never linked, and hashed while it is copied: what is committed is what was
read, even when the source changes meanwhile. Links to files are followed, as a checkpoint from a
model hub is often a directory of them. An ``artifact.json`` at the top, from another store, is
not content: its evidence is kept, and the whole of it as the origin.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO, cast

from nemotron_style.runtime import atomic
from nemotron_style.runtime.errors import ArtifactError, InputError, Problem
from nemotron_style.runtime.paths import expand_path
from nemotron_style.runtime.store.commit import commit_tree, discard, draft_record, finish_commit
from nemotron_style.runtime.store.digest import (
    RECORD_NAME,
    File,
    Hashed,
    digest_tree,
    directories,
    find_files,
)
from nemotron_style.runtime.store.layout import Layout, versions_in
from nemotron_style.runtime.store.record import Artifact, Evidence, Origin, parse_record

_CHUNK = 1 << 20
_URI = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE)
_USER = re.compile(r"(?<=://)[^/@]*@")


@dataclass(frozen=True)
class _Entry:
    path: str
    open: Callable[[], IO[bytes]]


@dataclass(frozen=True)
class _Source:
    text: str
    entries: list[_Entry]
    record: bytes | None


def adopt(layout: Layout, location: str, *, kind: str, name: str) -> Artifact:
    """Copy what is at ``location`` into the store; see :meth:`Store.adopt`."""
    layout.adopted("", kind, name)  # refuses a bad name or kind before anything is read
    if not _URI.match(location) and versions_in(layout.name(name)):
        digest, _files = digest_tree(expand_path(location))
        if known := finish_commit(layout, layout.adopted(digest, kind, name)):
            return known
    source = _open_uri(location) if _URI.match(location) else _open_path(location)
    staged = atomic.unique_path(layout.staging, "adopted")
    atomic.make_dir(staged)
    try:
        hashed = [_copy(entry, staged) for entry in source.entries]
        for directory in directories(staged):
            atomic.sync(directory)
        return _commit(layout, staged, source, hashed, kind=kind, name=name)
    except OSError as error:
        raise InputError(Problem(where=source.text, what=f"cannot be read: {error}")) from error
    finally:
        discard(layout, staged)


def _commit(
    layout: Layout, staged: Path, source: _Source, hashed: list[Hashed], *, kind: str, name: str
) -> Artifact:
    draft = draft_record(hashed, name=name, kind=kind, **_provenance(source))
    original = draft.origin.record if draft.origin else None
    if original and original.digest != draft.digest:
        raise InputError(
            Problem(
                where=source.text,
                what=f"the files are not those that its {RECORD_NAME} lists",
                got=draft.digest,
                allowed=original.digest,
                fix=f"remove {RECORD_NAME} to adopt them as they are",
            )
        )
    key = layout.adopted(draft.digest, kind, name)
    return finish_commit(layout, key) or commit_tree(layout, staged, draft, hashed)


def _provenance(source: _Source) -> Evidence:
    if source.record is None:
        return Evidence(origin=Origin(source=source.text))
    where = f"{source.text}/{RECORD_NAME}"
    try:
        record = parse_record(source.record, where=where)
    except ArtifactError as error:
        fix = "rename it when it is content, remove it when it is not"
        raise InputError(
            [*error.problems, Problem(where=where, what="is not the record of a store", fix=fix)]
        ) from None
    return Evidence(
        origin=Origin(source=source.text, record=record),
        config=record.config,
        code=record.code,
        environment=record.environment,
        hardware=record.hardware,
        seeds=record.seeds,
        metrics=record.metrics,
        facts=record.facts,
    )


def _copy(entry: _Entry, staged: Path) -> Hashed:
    target = staged / entry.path
    target.parent.mkdir(parents=True, exist_ok=True)
    content = hashlib.sha256()
    with entry.open() as reader, open(target, "xb") as writer:
        while chunk := reader.read(_CHUNK):
            content.update(chunk)
            writer.write(chunk)
        writer.flush()
        os.fchmod(writer.fileno(), 0o444)
        os.fsync(writer.fileno())
        state = os.fstat(writer.fileno())
    return Hashed(File(entry.path, state.st_size, content.hexdigest()), state.st_mtime_ns)


def _open_path(location: str) -> _Source:
    path = expand_path(location).absolute()
    try:
        found = find_files(path, follow_links=True)
    except ArtifactError as error:
        raise InputError(error.problems) from None
    entries = [_Entry(file.path, partial(_open_file, file.source)) for file in found]
    record = path / RECORD_NAME
    return _Source(str(path), entries, record.read_bytes() if record.is_file() else None)


def _open_file(path: Path) -> IO[bytes]:
    return path.open("rb")


def _open_uri(uri: str) -> _Source:
    import fsspec

    text = _USER.sub("", uri)
    try:
        system, root = fsspec.core.url_to_fs(uri)
        names = [root] if system.isfile(root) else system.find(root)
    except (OSError, ValueError, ImportError) as error:
        raise InputError(Problem(where=text, what=f"cannot be read: {error}")) from error
    base = root.rpartition("/")[0] if names == [root] else root.rstrip("/")
    read = {_relative(name, base, text): partial(system.open, name, "rb") for name in names}
    entries = [
        _Entry(path, cast("Callable[[], IO[bytes]]", opener))
        for path, opener in sorted(read.items())
        if path != RECORD_NAME
    ]
    if not entries:
        raise InputError(Problem(where=text, what="holds no files"))
    record = system.cat_file(f"{base}/{RECORD_NAME}") if RECORD_NAME in read else None
    return _Source(text, entries, record)


def _relative(name: str, base: str, uri: str) -> str:
    path = name.removeprefix(base).lstrip("/")
    # An object store may hold any name; one with ".." would be written elsewhere.
    if not path or path != str(PurePosixPath(path)) or ".." in PurePosixPath(path).parts:
        raise InputError(Problem(where=uri, key=path, what="is no name for a file"))
    return path
