"""Bring content from elsewhere into the store: a local path, or a URI by fsspec.

The content is copied, never linked, and hashed while it is copied: what is committed is what was
read, even when the source changes meanwhile. Nobody can read the copy who cannot read the source:
modes are kept, but for the right to write. Links to files of the same folder are followed, as a
checkpoint from a model hub is often a directory of them. An ``artifact.json`` at the top, from
another store, is not content: its evidence is kept, and the whole of it as the origin.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import signal
import stat
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from types import FrameType
from typing import IO, Any, cast

from nemotron_style.runtime import atomic
from nemotron_style.runtime.errors import ArtifactError, InputError, Problem, StepsError
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
from nemotron_style.runtime.store.layout import MAKE_ROOM, Layout
from nemotron_style.runtime.store.record import Artifact, Evidence, Origin, parse_record
from nemotron_style.runtime.store.ref import strip_user
from nemotron_style.runtime.store.resolve import find_adopted
from nemotron_style.runtime.units import format_size

_CHUNK = 1 << 20
_URI = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE)
# What a file system gives out as a name for exactly these bytes. Times are none: they are coarse.
_VERSIONS = ("ETag", "etag", "md5", "md5Hash", "content_md5", "Content-MD5", "crc32c", "generation")
_LOCAL = re.compile(r"(file|local)://", re.IGNORECASE)
_FULL = (errno.ENOSPC, errno.EDQUOT)


@dataclass(frozen=True)
class _Entry:
    """A file to copy; ``size`` in bytes, as far as it is known before."""

    path: str
    open: Callable[[], IO[bytes]]
    size: int
    mode: int = 0o444


@dataclass(frozen=True)
class _Source:
    """What is adopted; ``folder`` is the local directory that it is, if it is one."""

    text: str
    entries: list[_Entry]
    record: bytes | None
    folder: Path | None = None
    identity: str = ""


def adopt(layout: Layout, location: str, *, kind: str, name: str) -> Artifact:
    """Copy what is at ``location`` into the store; see :meth:`Store.adopt`."""
    layout.adopted("", kind, name)  # refuses a bad name or kind before anything is read
    location = _LOCAL.sub("", location)
    is_uri = bool(_URI.match(location))
    if not is_uri and layout.name(name).is_dir():
        digest, _files = digest_tree(expand_path(location))
        if known := finish_commit(layout, layout.adopted(digest, kind, name)):
            return known
    source = _open_uri(location) if is_uri else _open_path(location)
    if source.identity:
        fetched = find_adopted(layout, source.text, kind, name, identity=source.identity)
        key = layout.adopted(fetched.digest if fetched else "", kind, name)
        if fetched and (known := finish_commit(layout, key)):
            return known
    _check_room(layout, source)
    staged = atomic.unique_path(layout.staging, "adopted")
    with _removed_when_stopped(layout, staged):
        try:
            atomic.make_dir(staged)
            hashed = [_copy(entry, staged, source.folder) for entry in source.entries]
            for directory in directories(staged):
                atomic.sync(directory)
            return _commit(layout, staged, source, hashed, kind=kind, name=name)
        except OSError as error:
            raise _explain(error, layout, source) from error
        except Exception as error:  # what boto, aiohttp and their like raise is no OSError
            if not is_uri or isinstance(error, StepsError):
                raise
            raise _unreadable(source.text, error) from error


def list_uri(uri: str) -> list[str]:
    """Files and folders at a URI; see :meth:`Store.list_location`."""
    paths = [PurePosixPath(entry.path) for entry in _open_uri(uri).entries]
    folders = {parent for path in paths for parent in path.parents[:-1]}
    return [*map(str, paths), *(f"{folder}/" for folder in folders)]


def _check_room(layout: Layout, source: _Source) -> None:
    """Raise InputError when the copy cannot fit, before any of it is written."""
    needed = sum(entry.size for entry in source.entries)
    free = shutil.disk_usage(atomic.nearest_folder(layout.staging)).free
    if needed > free:
        what = f"{format_size(free)} are free, and a copy of {source.text} needs "
        what += format_size(needed)
        raise InputError(Problem(where=f"store {layout.root}", what=what, fix=MAKE_ROOM))


def _explain(error: OSError, layout: Layout, source: _Source) -> InputError:
    if error.errno in _FULL:
        what = f"there is no room for a copy of {source.text}; what was copied is removed"
        return InputError(Problem(where=f"store {layout.root}", what=what, fix=MAKE_ROOM))
    is_ours = str(error.filename or "").startswith(str(layout.root))
    where = f"store {layout.root}" if is_ours else source.text
    verb = "written" if is_ours else "read"
    return InputError(Problem(where=where, what=f"cannot be {verb}: {error}"))


@contextmanager
def _removed_when_stopped(layout: Layout, staged: Path) -> Iterator[None]:
    """Remove what was staged at the end of the block, however it ends.

    SIGTERM and SIGHUP would end the process at once, and leave the copy on the disk; here they
    are what Ctrl-C is. Handlers of others, and what ``nohup`` ignores, stay as they are.
    """

    def stop(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    numbers = (signal.SIGTERM, signal.SIGHUP)
    is_main = threading.current_thread() is threading.main_thread()
    ours = [each for each in numbers if is_main and signal.getsignal(each) is signal.SIG_DFL]
    for number in ours:
        signal.signal(number, stop)
    try:
        yield
    finally:
        discard(layout, staged)
        for number in ours:
            signal.signal(number, signal.SIG_DFL)


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
        return Evidence(origin=Origin(source=source.text, identity=source.identity))
    where = f"{source.text}/{RECORD_NAME}"
    try:
        record = parse_record(source.record, where=where)
    except ArtifactError as error:
        fix = "rename it when it is content, remove it when it is not"
        raise InputError(
            [*error.problems, Problem(where=where, what="is not the record of a store", fix=fix)]
        ) from None
    return Evidence(
        origin=Origin(source=source.text, record=record, identity=source.identity),
        config=record.config,
        code=record.code,
        environment=record.environment,
        hardware=record.hardware,
        seeds=record.seeds,
        metrics=record.metrics,
        facts=record.facts,
    )


def _copy(entry: _Entry, staged: Path, folder: Path | None) -> Hashed:
    target = staged / entry.path
    _make_folders(target.parent, staged, folder)
    content = hashlib.sha256()
    with entry.open() as reader, open(target, "xb", opener=_open_private) as writer:
        while chunk := reader.read(_CHUNK):
            content.update(chunk)
            writer.write(chunk)
        writer.flush()
        os.fchmod(writer.fileno(), entry.mode & 0o555 | 0o400)
        os.fsync(writer.fileno())
        state = os.fstat(writer.fileno())
    return Hashed(File(entry.path, state.st_size, content.hexdigest()), state.st_mtime_ns)


def _open_private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)  # until the mode of the source is set


def _make_folders(target: Path, staged: Path, folder: Path | None) -> None:
    """Create ``target``, and give it and its parents in ``staged`` no mode wider than there."""
    if target.is_dir() and target != staged:
        return
    target.mkdir(parents=True, exist_ok=True)
    inside = target.relative_to(staged)
    for path in (inside, *inside.parents):
        ours, theirs = staged / path, (folder or staged) / path  # a URI has no folder, nor modes
        ours.chmod(stat.S_IMODE(ours.stat().st_mode) & (theirs.stat().st_mode | 0o7700))


def _open_path(location: str) -> _Source:
    path = expand_path(location).absolute()
    try:
        found = find_files(path, follow_links=True)
        states = [file.source.stat() for file in found]
    except ArtifactError as error:
        raise InputError(error.problems) from None
    entries = [
        _Entry(file.path, partial(_open_file, file.source), state.st_size, state.st_mode)
        for file, state in zip(found, states, strict=True)
    ]
    record = path / RECORD_NAME
    data = record.read_bytes() if record.is_file() else None
    return _Source(str(path), entries, data, path if path.is_dir() else None)


def _open_file(path: Path) -> IO[bytes]:
    return path.open("rb")


def _open_uri(uri: str) -> _Source:
    import fsspec

    text = strip_user(uri)
    try:
        system, root = fsspec.core.url_to_fs(uri)
        is_file = system.isfile(root)
        infos = {root: system.info(root)} if is_file else system.find(root, detail=True)
    except Exception as error:
        raise _unreadable(text, error) from error
    base = root.rpartition("/")[0] if is_file else root.rstrip("/")
    entries = []
    for name, info in sorted(infos.items()):
        opener = cast("Callable[[], IO[bytes]]", partial(system.open, name, "rb"))
        entries.append(_Entry(_relative(name, base, text), opener, info.get("size") or 0))
    content = [entry for entry in entries if entry.path != RECORD_NAME]
    if not content:
        raise InputError(Problem(where=text, what="holds no files"))
    has_record = len(content) < len(entries)
    record = system.cat_file(f"{base}/{RECORD_NAME}") if has_record else None
    return _Source(text, content, record, identity=_identify(infos))


def _unreadable(uri: str, error: Exception) -> InputError:
    known = isinstance(error, OSError | ValueError | ImportError)
    reason = str(error) if known else f"{type(error).__name__}: {error}"
    return InputError(Problem(where=uri, what=f"cannot be read: {reason}"))


def _identify(files: Mapping[str, Mapping[str, Any]]) -> str:
    """The hash of what the file system says of every file; empty where that names no content."""
    facts = []
    for name, info in sorted(files.items()):
        versions = [str(info[key]) for key in _VERSIONS if info.get(key)]
        if not versions or versions[0].startswith("W/"):  # a weak ETag: other bytes may have it
            return ""
        facts.append((name, info.get("size"), versions))
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def _relative(name: str, base: str, uri: str) -> str:
    path = name.removeprefix(base).lstrip("/")
    # An object store may hold any name; one with ".." would be written elsewhere.
    if not path or path != str(PurePosixPath(path)) or ".." in PurePosixPath(path).parts:
        raise InputError(Problem(where=uri, key=path, what="is no name for a file"))
    if path.startswith(f"{RECORD_NAME}/"):
        what = f"lies under {RECORD_NAME}, the name of the record, which the store writes"
        raise InputError(Problem(where=uri, key=path, what=what))
    return path
