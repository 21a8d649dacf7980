"""A bucket in this process's memory (``memory://name``), for tests."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from nemotron_style.runtime.store.roots.bucket import ObjectState
from nemotron_style.runtime.store.roots.progress import Progress

_LOCK = threading.RLock()  # fsspec's own file system may be asked by one thread at a time


class MemoryBucket:
    """Objects of fsspec's memory file system below one name."""

    def __init__(self, url: str) -> None:
        import fsspec

        self.url = url
        self._system: Any = fsspec.filesystem("memory")
        self._root = "/" + url.partition("://")[2].strip("/")

    def create(self, key: str, data: bytes) -> bool:
        with _LOCK:
            if self._system.isfile(self._path(key)):
                return False
            self._system.pipe_file(self._path(key), data)
            return True

    def put(self, key: str, data: bytes) -> None:
        with _LOCK:
            self._system.pipe_file(self._path(key), data)

    def read(self, key: str) -> bytes:
        with _LOCK:
            return bytes(self._system.cat_file(self._path(key)))

    def read_range(self, key: str, start: int, end: int) -> bytes:
        return self.read(key)[start:end]

    def state(self, key: str) -> ObjectState | None:
        with _LOCK:
            if not key or not self._system.isfile(self._path(key)):
                return None
            info = self._system.info(self._path(key))
        return ObjectState(info["size"], info["created"].timestamp(), info["created"].isoformat())

    def list(
        self, prefix: str, *, deep: bool = False, limit: int | None = None
    ) -> Iterator[tuple[str, ObjectState | None]]:
        start = len(self._path(""))
        with _LOCK:
            names = [name[start:] for name in self._system.find(self._root)]
        names = sorted(name for name in names if name.startswith(prefix))
        if not deep:
            ends = (name.find("/", len(prefix)) for name in names)
            pairs = zip(names, ends, strict=True)
            names = list(dict.fromkeys(name if at < 0 else name[: at + 1] for name, at in pairs))
        for name in names[:limit]:
            state = None if name.endswith("/") else self.state(name)
            if state or name.endswith("/"):  # else it was removed meanwhile
                yield name.rstrip("/"), state

    def delete(self, keys: Iterable[str]) -> None:
        with _LOCK:
            for key in keys:
                if self._system.isfile(self._path(key)):
                    self._system.rm_file(self._path(key))

    def upload(self, source: Path, key: str, *, uploads: dict[str, str], progress: Progress) -> str:
        data = source.read_bytes()
        self.put(key, data)
        progress.add(len(data))
        state = self.state(key)
        return state.tag if state else ""

    def _path(self, key: str) -> str:
        return f"{self._root}/{key}"
