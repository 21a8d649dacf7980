"""A bucket as it is at one moment: listed once, and each object read once, to look at all of it."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator
from pathlib import Path

from nemotron_style.runtime.store.roots.bucket import Bucket, ObjectState
from nemotron_style.runtime.store.roots.object_path import ObjectPath
from nemotron_style.runtime.store.roots.progress import Progress


class Snapshot:
    """What another bucket has; nothing can be written.

    The listing takes its time. Of what was written meanwhile it may have a part.
    """

    def __init__(self, bucket: Bucket) -> None:
        self.url, self._bucket = bucket.url, bucket
        self._states = {key: state for key, state in bucket.list("", deep=True) if state}
        self._keys = sorted(self._states)
        self._read: dict[str, bytes] = {}

    def read(self, key: str) -> bytes:
        if key not in self._read:  # each check looks at the same records
            self._read[key] = self._bucket.read(key)
        return self._read[key]

    def read_range(self, key: str, start: int, end: int) -> bytes:
        return self._bucket.read_range(key, start, end)

    def state(self, key: str) -> ObjectState | None:
        return self._states.get(key)

    def list(
        self, prefix: str, *, deep: bool = False, limit: int | None = None
    ) -> Iterator[tuple[str, ObjectState | None]]:
        at, count = bisect_left(self._keys, prefix), 0
        while at < len(self._keys) and self._keys[at].startswith(prefix) and count != limit:
            key, count = self._keys[at], count + 1
            end = -1 if deep else key.find("/", len(prefix))
            if end < 0:
                yield key, self._states[key]
                at += 1
            else:
                yield key[:end], None
                at = bisect_left(self._keys, key[:end] + "0")  # which comes right after the slash

    def create(self, key: str, data: bytes) -> bool:
        raise NotImplementedError

    def put(self, key: str, data: bytes) -> None:
        raise NotImplementedError

    def delete(self, keys: Iterable[str]) -> None:
        raise NotImplementedError

    def upload(self, source: Path, key: str, *, uploads: dict[str, str], progress: Progress) -> str:
        raise NotImplementedError


def take_snapshot(root: Path) -> ObjectPath | None:
    """The root of a store as it is now, where each look is a request; else None."""
    if not isinstance(root, ObjectPath) or isinstance(root.bucket, Snapshot):
        return None
    return ObjectPath(Snapshot(root.bucket), root.key)
