"""How one file of a source comes into the staging area: as a clone, a hard link, a copy, a link.

A clone takes no room and shares nothing but bytes that neither side has written since. A hard link,
where there are no clones, is the same file under a second name: whoever may write it changes both.
So it is made read-only, at its source too, and only a large one is worth that.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TypedDict

from nemotron_style.runtime.errors import InputError, Problem
from nemotron_style.runtime.store.adoption.source import Entry, Source
from nemotron_style.runtime.store.digest import File, Found, Hashed, hash_file, hash_files
from nemotron_style.runtime.units import format_size

SMALLEST_LINK = 16 << 20
"""Bytes from which on a file is linked. A smaller one is soon copied, and stays as it is."""
FICLONE = 0x40049409
"""The request of Linux that makes a file share the bytes of another (XFS, Btrfs, bcachefs)."""
_CHUNK = 1 << 20
_NO_LINK = (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.EACCES, errno.ENOTSUP, errno.ENOSYS)


@dataclass
class Ways:
    """Bytes of an adopted source by the way in which they came into the store.

    Of these, ``shared`` were there already, in files of other artifacts, and are not stored twice.
    """

    bytes: dict[str, int] = field(default_factory=dict)
    shared: int = 0

    def add(self, way: str, size: int) -> None:
        """Count a file."""
        self.bytes[way] = self.bytes.get(way, 0) + size

    def describe(self) -> str:
        """``hard links (4.0 GiB; they are read-only now, at their source too), copied (1 KiB)``."""
        more = {"hard links": "; they are read-only now, at their source too"}
        pairs = self.bytes.items()
        came = ", ".join(f"{way} ({format_size(n)}{more.get(way, '')})" for way, n in pairs)
        shared = f"; {format_size(self.shared)} of it is stored once with other artifacts"
        return came + shared if self.shared else came


class How(TypedDict, total=False):
    """How a source is to be adopted; see :meth:`Store.adopt`."""

    reference: bool
    link: bool
    ways: Ways | None


def hash_source(source: Source) -> dict[str, Hashed]:
    """The files of a local source as they are now, by path."""
    found = [Found(entry.path, entry.place) for entry in source.entries if entry.place]
    return {each.file.path: each for each in hash_files(found)}


def bring(
    entry: Entry, staged: Path, source: Source, *, known: Mapping[str, Hashed], ways: Ways
) -> Hashed:
    """Put one file into the staged folder; ``known`` are the hashes of those that may be linked."""
    target = staged / entry.path
    _make_folders(target.parent, staged, source.folder)
    if source.referenced:
        assert entry.place
        place = Path(os.path.realpath(entry.place))
        target.symlink_to(place)
        hashed, way = hash_file(Found(entry.path, place)), "referenced"
    elif (clone := _clone_at_rest(entry, target, known)) is not None:
        hashed, way = clone, "clones"
    elif entry.path in known and entry.size >= SMALLEST_LINK and _link(entry, target):
        _check_unchanged(target, known[entry.path], source)
        hashed, way = known[entry.path], "hard links"
    else:
        hashed, way = _copy(entry, target)
    ways.add(way, hashed.file.size)
    return hashed


def _clone_at_rest(entry: Entry, target: Path, known: Mapping[str, Hashed]) -> Hashed | None:
    """The clone of a file that is as it was when it was hashed; None where there can be none."""
    before = known.get(entry.path)
    if before is None or entry.place is None or entry.size < SMALLEST_LINK:
        return None
    with entry.open() as reader, open(target, "x+b", opener=_open_private) as writer:
        state = os.fstat(reader.fileno())
        if _clone(reader, writer) and _is_same(os.fstat(reader.fileno()), before):
            os.fchmod(writer.fileno(), state.st_mode & 0o555 | 0o400)
            os.fsync(writer.fileno())
            return Hashed(before.file, os.fstat(writer.fileno()).st_mtime_ns)
    target.unlink()
    return None


def _link(entry: Entry, target: Path) -> bool:
    """Give a file a second name, and take the right to write it; False where that cannot be."""
    assert entry.place
    state = entry.place.stat()
    if os.geteuid() not in (0, state.st_uid):  # its owner could still write it
        return False
    try:
        os.link(entry.place, target)
    except OSError as error:
        if error.errno in _NO_LINK:
            return False
        raise
    target.chmod(state.st_mode & 0o555 | 0o400)
    with open(target, "rb") as file:
        os.fsync(file.fileno())
    return True


def _check_unchanged(target: Path, hashed: Hashed, source: Source) -> None:
    """Raise InputError when a file was written since it was hashed."""
    if not _is_same(target.stat(), hashed):
        what, fix = f"{hashed.file.path} changed while it was read", "adopt it when it is at rest"
        raise InputError(Problem(where=source.text, what=what, fix=fix))


def _is_same(state: os.stat_result, hashed: Hashed) -> bool:
    return (state.st_size, state.st_mtime_ns) == (hashed.file.size, hashed.mtime_ns)


def _copy(entry: Entry, target: Path) -> tuple[Hashed, str]:
    content, way = hashlib.sha256(), "copied"
    with entry.open() as reader, open(target, "x+b", opener=_open_private) as writer:
        if entry.place and _clone(reader, writer):
            # What is hashed is the clone, which nobody else writes to.
            content, way = hashlib.file_digest(writer, "sha256"), "clones"
        while chunk := reader.read(_CHUNK):
            content.update(chunk)
            writer.write(chunk)
        writer.flush()
        os.fchmod(writer.fileno(), entry.mode & 0o555 | 0o400)
        os.fsync(writer.fileno())
        state = os.fstat(writer.fileno())
    file = File(entry.path, state.st_size, content.hexdigest())
    return Hashed(file, state.st_mtime_ns), way


def _clone(reader: IO[bytes], writer: IO[bytes]) -> bool:
    """Whether the file system let two files share their bytes until one of them is written to."""
    try:
        fcntl.ioctl(writer.fileno(), FICLONE, reader.fileno())
    except (OSError, ValueError):  # another file system, or one that cannot
        return False
    reader.seek(0, os.SEEK_END)
    return True


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
