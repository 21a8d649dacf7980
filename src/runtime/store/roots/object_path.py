"""A place in a bucket, with the methods of a path that the store uses.

So the code of the store is written once, for folders and buckets. To type checkers it is a Path;
it is none, and has no place on this machine: ``open`` and the functions of ``os`` refuse it. (The
paths of universal_pathlib go through fsspec's listings and caches, which must decide nothing here.)
"""

from __future__ import annotations

import fnmatch
import hashlib
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from nemotron_style.runtime.store.roots.bucket import Bucket, ObjectState

_Path: Any = Path if TYPE_CHECKING else object


@dataclass(frozen=True)
class ObjectStat:
    """What of ``os.stat_result`` the store asks for; ``st_mtime_ns`` tells bytes apart (ETag)."""

    st_mode: int
    st_size: int
    st_mtime: float
    st_mtime_ns: int
    st_nlink: int = 1


class ObjectPath(_Path):  # type: ignore[misc]
    """The object, or the folder, under ``key``; a folder is there as long as something is in it.

    ``listed`` is what a listing just said of the object, so that it need not be asked for again.
    """

    def __init__(self, bucket: Bucket, key: str = "", listed: ObjectState | None = None) -> None:
        self.bucket, self.key, self._listed = bucket, key, listed

    def __truediv__(self, name: object) -> ObjectPath:
        key = PurePosixPath(self.key, str(name)).as_posix()
        return ObjectPath(self.bucket, key)

    def __str__(self) -> str:
        return f"{self.bucket.url}/{self.key}" if self.key else self.bucket.url

    def __repr__(self) -> str:
        return f"ObjectPath({str(self)!r})"

    def __fspath__(self) -> str:
        raise TypeError(f"{self} is not on this machine; Store.fetch brings an artifact here")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ObjectPath) and str(self) == str(other)

    def __hash__(self) -> int:
        return hash(str(self))

    def __lt__(self, other: ObjectPath) -> bool:
        return str(self) < str(other)

    @property
    def name(self) -> str:
        """The last part."""
        return PurePosixPath(self.key).name

    @property
    def parent(self) -> ObjectPath:
        """The folder above; of the root, the root."""
        above = PurePosixPath(self.key).parent.as_posix()
        return ObjectPath(self.bucket, "" if above == "." else above)

    def relative_to(self, other: object) -> PurePosixPath:
        """The way from ``other``, which lies above; raises ValueError when it does not."""
        if not self.is_relative_to(other):
            raise ValueError(f"{self} does not lie in {other}")
        assert isinstance(other, ObjectPath)
        return PurePosixPath(self.key).relative_to(other.key)

    def is_relative_to(self, other: object) -> bool:
        """Whether ``other`` lies above."""
        if not isinstance(other, ObjectPath) or other.bucket.url != self.bucket.url:
            return False
        return PurePosixPath(self.key).is_relative_to(other.key)

    def is_file(self) -> bool:
        """Whether there is an object."""
        return self.bucket.state(self.key) is not None

    def is_dir(self) -> bool:
        """Whether there is something below."""
        # An object: a server with real folders names those that were emptied for a while yet.
        return any(True for _ in self.bucket.list(self._prefix, deep=True, limit=1))

    def exists(self) -> bool:
        """Whether there is an object, or something below."""
        return self.is_file() or self.is_dir()

    def is_symlink(self) -> bool:
        """No: a bucket has none."""
        return False

    def stat(self) -> ObjectStat:
        """What is known of it; raises FileNotFoundError when nothing is there."""
        if state := self._listed or self.bucket.state(self.key):
            return describe(state)
        if self.is_dir():
            return ObjectStat(stat.S_IFDIR | 0o755, 0, 0.0, 0)
        raise FileNotFoundError(str(self))

    lstat = stat

    def iterdir(self) -> Iterator[ObjectPath]:
        """What is directly below; nothing when there is nothing."""
        for key, _state in self.bucket.list(self._prefix):
            yield ObjectPath(self.bucket, key)

    def glob(self, pattern: str) -> Iterator[ObjectPath]:
        """What is below and has a name like ``pattern``, which may have folders before it."""
        folder, _, last = pattern.rpartition("/")
        base = self / folder if folder else self
        fixed = last[: min((last.index(each) for each in "*?[" if each in last), default=None)]
        for key, _state in self.bucket.list(base._prefix + fixed):
            if fnmatch.fnmatchcase(PurePosixPath(key).name, last):
                yield ObjectPath(self.bucket, key)

    def walk_files(self) -> Iterator[tuple[ObjectPath, ObjectStat]]:
        """Every object below, by path, for one listing."""
        for key, state in self.bucket.list(self._prefix, deep=True):
            assert state
            yield ObjectPath(self.bucket, key, state), describe(state)

    def read_bytes(self) -> bytes:
        """The object; raises FileNotFoundError when there is none."""
        return self.bucket.read(self.key)

    def read_text(self, encoding: str = "utf-8") -> str:
        """The object as text."""
        return self.read_bytes().decode(encoding)

    def unlink(self, missing_ok: bool = False) -> None:
        """Remove the object."""
        if not missing_ok and not self.is_file():
            raise FileNotFoundError(str(self))
        self.bucket.delete([self.key])

    def rmdir(self) -> None:
        """Nothing: without what was in it, a folder is gone."""

    @property
    def _prefix(self) -> str:
        return f"{self.key}/" if self.key else ""


def describe(state: ObjectState) -> ObjectStat:
    """The state of an object as that of a read-only file."""
    return ObjectStat(stat.S_IFREG | 0o444, state.size, state.changed, number_of(state.tag))


def number_of(tag: str) -> int:
    """A number that JSON holds exactly, and another one after a write of other bytes."""
    return int.from_bytes(hashlib.sha256(tag.encode()).digest()[:6], "big")
