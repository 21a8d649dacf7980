"""What is adopted: the files at a local path, or at a URI by fsspec, and how each is opened."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO, Any, cast

from nemotron_style.runtime.errors import ArtifactError, InputError, Problem
from nemotron_style.runtime.paths import expand_path
from nemotron_style.runtime.store.digest import RECORD_NAME, find_files
from nemotron_style.runtime.store.ref import strip_user

# What a file system gives out as a name for exactly these bytes. Times are none: they are coarse.
_VERSIONS = ("ETag", "etag", "md5", "md5Hash", "content_md5", "Content-MD5", "crc32c", "generation")
_URI = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE)
_LOCAL = re.compile(r"(file|local)://", re.IGNORECASE)


def strip_local(location: str) -> str:
    """A location without the scheme of this machine."""
    return _LOCAL.sub("", location)


def is_uri(location: str) -> bool:
    """Whether a location is one that fsspec opens."""
    return bool(_URI.match(location))


@dataclass(frozen=True)
class Entry:
    """A file to copy; ``size`` in bytes, as far as it is known before.

    ``place`` is where a local one really lies.
    """

    path: str
    open: Callable[[], IO[bytes]]
    size: int
    mode: int = 0o444
    place: Path | None = None


@dataclass(frozen=True)
class Source:
    """What is adopted; ``folder`` is the local directory that it is, if it is one.

    It is copied, or ``referenced`` where it lies.
    """

    text: str
    entries: list[Entry]
    record: bytes | None
    folder: Path | None = None
    identity: str = ""
    referenced: bool = False


def list_uri(uri: str) -> list[str]:
    """Files and folders at a URI; see :meth:`Store.list_location`."""
    paths = [PurePosixPath(entry.path) for entry in open_uri(uri).entries]
    folders = {parent for path in paths for parent in path.parents[:-1]}
    return [*map(str, paths), *(f"{folder}/" for folder in folders)]


def open_path(location: str) -> Source:
    """The files at a local path. Raises InputError where they cannot be adopted."""
    if not location:  # an unset variable, which as a path would be the working directory
        raise InputError("the path or URI to adopt is empty")
    path = expand_path(location).absolute()
    try:
        found = find_files(path, follow_links=True)
        states = [file.source.stat() for file in found]
    except ArtifactError as error:
        raise InputError(error.problems) from None
    entries = [
        Entry(
            file.path, partial(_open_file, file.source), state.st_size, state.st_mode, file.source
        )
        for file, state in zip(found, states, strict=True)
    ]
    record = path / RECORD_NAME
    data = record.read_bytes() if record.is_file() else None
    return Source(str(path), entries, data, path if path.is_dir() else None)


def _open_file(path: Path) -> IO[bytes]:
    return path.open("rb")


def open_uri(uri: str) -> Source:
    """The files at a URI. Raises InputError where there is none to be read."""
    import fsspec

    text = strip_user(uri)
    try:
        system, root = fsspec.core.url_to_fs(uri)
        is_file = system.isfile(root)
        infos = {root: system.info(root)} if is_file else system.find(root, detail=True)
        if not infos:  # a web server that does not answer looks like an empty folder
            system.info(root)
    except Exception as error:
        raise explain_unreadable(text, error) from error
    base = root.rpartition("/")[0] if is_file else root.rstrip("/")
    entries = []
    for name, info in sorted(infos.items()):
        opener = cast("Callable[[], IO[bytes]]", partial(system.open, name, "rb"))
        entries.append(Entry(_relative(name, base, text), opener, info.get("size") or 0))
    content = [entry for entry in entries if entry.path != RECORD_NAME]
    if not content:
        raise InputError(Problem(where=text, what="holds no files"))
    has_record = len(content) < len(entries)
    record = system.cat_file(f"{base}/{RECORD_NAME}") if has_record else None
    return Source(text, content, record, identity=_identify(infos))


def explain_unreadable(uri: str, error: Exception) -> InputError:
    """The error for a user, of what a file system's library raised."""
    known = isinstance(error, OSError | ValueError | ImportError)
    reason = str(error) if known else f"{type(error).__name__}: {error}"
    if isinstance(error, FileNotFoundError):  # which says no more than the address
        reason = str(error.__cause__ or "there is nothing")
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
