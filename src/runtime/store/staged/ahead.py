"""Hash the files of a step's outputs while the step still writes others.

A commit then reads only what was written last, and no file twice from the disk that has left the
memory meanwhile. A hash counts only for a file at rest: nobody has it open for writing when the
hashing begins, it was last written long enough ago for a later write to show in its times, and its
times are still the same when it is committed. Every other file is hashed by the commit.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import signal
import threading
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from nemotron_style.runtime.store.digest import File, Found, Hashed

SMALLEST = 8 << 20
"""Bytes from which on a file is hashed ahead; what is smaller a commit has soon hashed."""
REST_S = 2.0
"""Some disks note times to the second, or to two."""
PAUSE_S = 1.0
_CHUNK = 1 << 20
_Key = tuple[int, int, int, int, int]


class HashAhead:
    """A thread that hashes what comes to rest below a folder, from ``with`` on."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._hashes: dict[_Key, str] = {}
        self._enough, self._cancelled = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._work, name="hash-ahead", daemon=True)

    def __enter__(self) -> HashAhead:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._cancelled.set()
        self._enough.set()

    def find(self, found: list[Found]) -> dict[str, Hashed]:
        """The hashes of those files that are as they were, by path; no more are begun."""
        self._enough.set()
        if self._thread.is_alive():
            self._thread.join()  # what it has begun to hash a commit would have to hash as well
        known = {}
        for each in found:
            state = os.stat(each.source, follow_symlinks=False)
            if content := self._hashes.get(_identify(state)):
                file = File(each.path, state.st_size, content)
                known[each.path] = Hashed(file, state.st_mtime_ns)
        return known

    def look(self) -> None:
        """Hash what is at rest now."""
        for folder, _folders, names in os.walk(self._folder):
            for name in names:
                if not self._enough.is_set():
                    with suppress(OSError):  # it is gone, or not to be read: the commit says so
                        self._hash(os.path.join(folder, name))

    def _work(self) -> None:
        while not self._enough.wait(PAUSE_S):
            self.look()

    def _hash(self, path: str) -> None:
        state = os.lstat(path)
        is_at_rest = state.st_mtime < time.time() - REST_S
        if state.st_size < SMALLEST or not is_at_rest or _identify(state) in self._hashes:
            return
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
        with open(handle, "rb", buffering=0) as stream:
            if _has_writer(handle):
                return
            content = hashlib.sha256()
            while chunk := stream.read(_CHUNK):
                content.update(chunk)  # which releases Python's lock
                if self._cancelled.is_set():
                    return
            if _identify(os.fstat(handle)) == _identify(state):
                self._hashes[_identify(state)] = content.hexdigest()


def _identify(state: os.stat_result) -> _Key:
    """What changes when a file does: the time of its inode cannot be set back."""
    return state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns, state.st_ctime_ns


def _has_writer(handle: int) -> bool:
    """Whether a file is, or may be, open for writing, or mapped so, by anybody on this machine."""
    try:
        # Linux gives a lease on a file that nobody writes. Who opens it at this very moment waits
        # until it is given back, and the signal that asks for it must be one that ends nobody.
        fcntl.fcntl(handle, fcntl.F_SETSIG, signal.SIGURG)
        fcntl.fcntl(handle, fcntl.F_SETLEASE, fcntl.F_RDLCK)
        fcntl.fcntl(handle, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    except (AttributeError, OSError):
        return True
    return False
