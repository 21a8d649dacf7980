"""A bucket in memory that refuses: it is full, or asks for patience without an end."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar
from unittest.mock import patch

from nemotron_style.runtime.store.roots import location
from nemotron_style.runtime.store.roots.explain import explain
from nemotron_style.runtime.store.roots.memory import MemoryBucket


class FullBucket:
    """Counts requests, and lets some of them fail with a code as S3 and its like answer it."""

    CODES = ("XMinioStorageFull", "SlowDown", "QuotaExceeded")
    at: ClassVar[FullBucket | None] = None  # that which refuses at this moment

    def __init__(self, code: str, first: int, *, lasting: bool) -> None:
        self.code, self.first, self.lasting = code, first, lasting
        self.requests = self.refused = 0
        self.reason = "cannot at the moment" if code == "SlowDown" else "is full; make room there"

    def count(self, url: str, *, writes: bool) -> None:
        """One more request; raises StoreError when it is its turn to fail."""
        if not writes and self.code != "SlowDown":
            return
        self.requests += 1
        is_due = self.requests > self.first if self.lasting else self.requests == self.first + 1
        if is_due:
            self.refused += 1
            raise explain(_Answer(self.code), url)

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """Requests fail from here to the end of the block."""
        with patch.object(FullBucket, "at", self):
            yield

    @staticmethod
    @contextmanager
    def in_place() -> Iterator[None]:
        """``memory://`` is such a bucket, to the end of the block."""
        location._open_bucket.cache_clear()
        with patch.dict(location.BUCKETS, {"memory": _Guarded}):
            yield
        location._open_bucket.cache_clear()


class _Guarded(MemoryBucket):
    """Each operation that the store asks for is a request; those that it is made of are none."""

    def __getattribute__(self, name: str) -> Any:
        writes = name in ("create", "put", "upload")
        if writes or name in ("read", "read_range", "state", "list", "delete"):
            if FullBucket.at:
                FullBucket.at.count(self.url, writes=writes)
            return getattr(MemoryBucket(self.url), name)
        return super().__getattribute__(name)


class _Answer(OSError):
    def __init__(self, code: str) -> None:
        super().__init__(f"said {code}")
        self.response = {"Error": {"Code": code}}


def copy_bucket(source: str, target: str) -> None:
    """Make all that is below ``target`` what is below ``source``."""
    there, here = MemoryBucket(source), MemoryBucket(target)
    here.delete([key for key, _state in here.list("", deep=True)])
    for key, _state in there.list("", deep=True):
        here.put(key, there.read(key))
