"""The content digest of a directory: which files it holds and what is in them.

The digest is ``sha256:`` and the hash of one line per file, sorted by path, each line the
compact JSON list ``[path, size, sha256]``. The record ``artifact.json`` is not part of it, nor
are times, modes and empty directories: two trees of equal files have equal digests anywhere.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from nemotron_style.runtime.errors import ArtifactError, InputError, Problem, raise_all, shorten
from nemotron_style.runtime.store.roots.object_path import ObjectPath

RECORD_NAME = "artifact.json"
_WORTH_THREADS = 8 << 20  # bytes
_RANGE = 8 << 20  # bytes of an object that are asked for at once
ANYWHERE = ("",)  # every absolute path begins so


@dataclass(frozen=True)
class File:
    """One file of an artifact; ``path`` is relative with ``/``, ``size`` in bytes."""

    path: str
    size: int
    sha256: str


@dataclass(frozen=True)
class Found:
    """A file met on disk: its path in the tree and where its bytes are."""

    path: str
    source: Path


@dataclass(frozen=True)
class Hashed:
    """A file and the modification time (ns) that it had while it was hashed."""

    file: File
    mtime_ns: int


def digest_tree(path: Path) -> tuple[str, tuple[File, ...]]:
    """Digest and files of a directory, or of a single file, as adopting it would give.

    Links to files are followed, as adopting copies what they point to. Raises InputError when
    nothing is there, no files are in it, or something that is not a plain file.
    """
    try:
        hashed = hash_files(find_files(path, follow_links=True))
    except ArtifactError as error:
        raise InputError(error.problems) from None
    files = tuple(each.file for each in hashed)
    return digest_files(files), files


def digest_files(files: Iterable[File]) -> str:
    """The digest of an artifact with these files."""
    whole = hashlib.sha256()
    for file in sorted(files, key=lambda file: file.path):
        line = [file.path, file.size, file.sha256]
        whole.update(json.dumps(line, ensure_ascii=False, separators=(",", ":")).encode() + b"\n")
    return f"sha256:{whole.hexdigest()}"


def hash_files(
    found: Sequence[Found], *, durable: bool = False, known: Mapping[str, Hashed] | None = None
) -> list[Hashed]:
    """:func:`hash_file` of each, in their order; large ones several at a time, a thread a core.

    ``known`` are hashes from before, by path, of those that were not written since.
    """
    threads = min(_count_cores(), len(found))
    known = known or {}

    def one(file: Found) -> Hashed:
        return hash_file(file, durable=durable, known=known.get(file.path))

    if threads < 2 or sum(_size_of(each) for each in found) < _WORTH_THREADS:
        return [one(each) for each in found]
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(threads) as pool:  # hashing releases Python's lock
        return list(pool.map(one, found))


def _count_cores() -> int:
    ours = getattr(os, "sched_getaffinity", None)  # only Linux says which cores are ours
    return len(ours(0)) if ours else os.cpu_count() or 1


def _size_of(found: Found) -> int:
    return 0 if isinstance(found.source, ObjectPath) else os.stat(found.source).st_size


def hash_file(found: Found, *, durable: bool = False, known: Hashed | None = None) -> Hashed:
    """Hash one file; ``durable`` also asks the disk to keep it, while it is open anyway.

    A ``known`` hash is taken as long as size and time of the file are still those.
    """
    if isinstance(found.source, ObjectPath):
        return _hash_object(found.path, found.source)
    with open(found.source, "rb") as stream:
        state = os.fstat(stream.fileno())
        before = (known.file.size, known.mtime_ns) if known else ()
        if known and before == (state.st_size, state.st_mtime_ns):
            content = known.file.sha256
        else:
            content = hashlib.file_digest(stream, "sha256").hexdigest()
        if durable:
            os.fsync(stream.fileno())
        state = os.fstat(stream.fileno())
    return Hashed(File(found.path, state.st_size, content), state.st_mtime_ns)


def find_files(root: Path, *, follow_links: bool = False, referenced: bool = False) -> list[Found]:
    """Every file under ``root`` sorted by path, without ``artifact.json`` at the top.

    Links are refused, or with ``follow_links`` those that leave the tree; what is ``referenced``
    lies anywhere.

    Raises ArtifactError with every entry that is neither a plain file nor a directory and every
    name that is not UTF-8, and where there is no file at all.
    """
    if isinstance(root, ObjectPath):
        return _find_objects(root)
    try:
        mode = root.stat().st_mode
    except OSError as error:
        what = (error.strerror or str(error)).lower()
        raise ArtifactError(Problem(where=shorten(str(root)), what=what)) from None
    if stat.S_ISREG(mode):
        return [Found(root.name, root)]
    if not stat.S_ISDIR(mode):
        what = "is neither a plain file nor a directory"
        raise ArtifactError(Problem(where=str(root), what=what))
    roots = ANYWHERE if referenced else _roots_of_links(root) if follow_links else ()
    found: list[Found] = []
    problems: list[Problem] = []
    for path, source in _entries(root, problems):
        if what := _what_is_wrong(path, source, roots):
            where = os.fsencode(source).decode("utf-8", "replace")
            problems.append(Problem(where=where, what=what))
        elif path != RECORD_NAME:
            found.append(Found(path, Path(os.path.realpath(source)) if roots else Path(source)))
    if not found and not problems:
        problems.append(Problem(where=str(root), what="holds no files"))
    raise_all(ArtifactError, problems)
    return sorted(found, key=lambda file: file.path)


def _hash_object(path: str, place: ObjectPath) -> Hashed:
    state, whole = place.stat(), hashlib.sha256()
    for start in range(0, state.st_size, _RANGE):
        end = min(start + _RANGE, state.st_size)
        whole.update(place.bucket.read_range(place.key, start, end))
    return Hashed(File(path, state.st_size, whole.hexdigest()), state.st_mtime_ns)


def _find_objects(root: ObjectPath) -> list[Found]:
    pairs = [(str(each.relative_to(root)), each) for each, _state in root.walk_files()]
    found = [Found(path, each) for path, each in pairs if path != RECORD_NAME]
    if not found:
        raise ArtifactError(Problem(where=str(root), what="holds no files"))
    return sorted(found, key=lambda file: file.path)


def directories(root: Path) -> Iterator[Path]:
    """Every directory of a tree, the deepest first and ``root`` last."""
    for directory, _names, _files in os.walk(root, topdown=False):
        yield Path(directory)


def _entries(root: Path, problems: list[Problem]) -> Iterator[tuple[str, str]]:
    """(path in the tree, path on disk) of all that is no directory; adds what cannot be listed."""
    pending = [(str(root), "")]
    while pending:
        directory, prefix = pending.pop()
        try:
            entries = sorted(os.scandir(directory), key=lambda entry: entry.name)
        except OSError as error:
            problems.append(Problem(where=directory, what=f"cannot be read: {error.strerror}"))
            continue
        for entry in entries:
            path = prefix + entry.name
            if entry.is_dir(follow_symlinks=False):
                pending.append((entry.path, path + "/"))
            else:
                yield path, entry.path


def _roots_of_links(root: Path) -> tuple[str, ...]:
    """Where files may lie to which links in ``root`` point: in ``root`` itself.

    A snapshot in a model hub's cache (``snapshots/<revision>``) is made of links to the ``blobs``
    beside it. Through any other link a file would be copied that nobody meant, and that others
    may not read.
    """
    real = os.path.realpath(root)
    above, name = os.path.split(os.path.dirname(real))
    return (real, os.path.join(above, "blobs")) if name == "snapshots" else (real,)


def _what_is_wrong(path: str, source: str, roots: tuple[str, ...]) -> str:
    """Why the file at ``source`` cannot be ``path`` of an artifact; links may lead into roots."""
    if os.path.islink(source):
        target = os.path.realpath(source)
        if roots == ANYWHERE and not os.path.isfile(target):
            return f"refers to {target}, which is not there"
        if not roots or not os.path.isfile(target):
            more = " unless it points to a file" if roots else ""
            return f"is a symbolic link, which an artifact cannot hold{more}"
        if not any(target.startswith(root + os.sep) for root in roots):
            return f"is a link to {target}, outside of the folder; put a copy in its place"
    if not stat.S_ISREG(os.stat(source).st_mode):
        return "is neither a plain file nor a directory"
    if path.startswith(f"{RECORD_NAME}/"):
        return f"lies under {RECORD_NAME}, the name of the record, which the store writes"
    try:
        path.encode()
    except UnicodeEncodeError:
        return "has a name that is not UTF-8"
    return ""
