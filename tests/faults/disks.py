"""Disks that refuse: file operations of this process, and of those that it forks, that fail."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

# What writes: on a disk that is full, broken or read-only each of them can fail.
WRITING = (
    "open", "mkdir", "rename", "replace", "link", "unlink", "rmdir", "fsync", "chmod", "fchmod",
    "utime",
)  # fmt: skip
WRITING_FLAGS = os.O_WRONLY | os.O_RDWR | os.O_CREAT

_ROOMY = "size=64m,nr_inodes=100000"


@contextmanager
def no_hard_links(number: int = errno.EPERM) -> Iterator[None]:
    """A disk without hard links, as FAT, exFAT and most of FUSE: ``os.link`` fails."""
    with patch.object(os, "link", _refuse(number)):
        yield


@contextmanager
def no_waiting() -> Iterator[None]:
    """Nothing is forced to the disk: for the death of processes, not of machines."""
    with patch.object(os, "fsync", lambda handle: None):
        yield


class Refusals:
    """Counts file operations that write, and lets some of them fail."""

    def __init__(self, number: int, first: int, *, lasting: bool) -> None:
        self.number = number
        self.first = first
        self.lasting = lasting
        self.operations = 0
        self.refused = 0
        self.reason = os.strerror(number)

    def count(self, name: object = None) -> None:
        """One more operation; raises OSError when it is its turn to fail."""
        self.operations += 1
        is_due = self.operations > self.first if self.lasting else self.operations == self.first + 1
        if is_due:
            self.refused += 1
            path = os.fspath(name) if isinstance(name, str | os.PathLike) else None
            raise OSError(self.number, os.strerror(self.number), path)

    @contextmanager
    def at_work(self) -> Iterator[Refusals]:
        """Operations of this process fail from here to the end of the block."""
        with ExitStack() as stack:
            for name in WRITING:
                stack.enter_context(patch.object(os, name, self._guard(getattr(os, name))))
            stack.enter_context(patch.object(os, "fdopen", self._open_guarded(os.fdopen)))
            yield self

    def _guard(self, real: Callable[..., Any]) -> Callable[..., Any]:
        is_open = real is os.open

        def operation(*args: Any, **kwargs: Any) -> Any:
            if not is_open or args[1] & WRITING_FLAGS:
                self.count(args[0])
            return real(*args, **kwargs)

        return operation

    def _open_guarded(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def operation(handle: int, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
            stream = real(handle, mode, *args, **kwargs)
            return stream if mode.startswith("r") else _Guarded(stream, self)

        return operation


class _Guarded:
    """A file whose every write counts as an operation."""

    def __init__(self, stream: Any, refusals: Refusals) -> None:
        self._stream = stream
        self._refusals = refusals

    def write(self, text: str) -> int:
        self._refusals.count()
        return int(self._stream.write(text))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def __enter__(self) -> _Guarded:
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.close()


class Room:
    """A tmpfs with room for so many more pages (``size``) or files (``nr_inodes``)."""

    reason = os.strerror(errno.ENOSPC)

    def __init__(self, mount: Path, unit: str, units: int) -> None:
        self.mount = mount
        self.unit = unit
        self.units = units

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """There is no more room than that, from here to the end of the block."""
        state = os.statvfs(self.mount)
        pages, files = state.f_blocks - state.f_bfree, state.f_files - state.f_ffree
        used = pages * state.f_bsize if self.unit == "size" else files
        least = self.units * (state.f_bsize if self.unit == "size" else 1)
        _mount_tmpfs(self.mount, f"remount,{self.unit}={used + least}")
        try:
            yield
        finally:
            _mount_tmpfs(self.mount, f"remount,{_ROOMY}")


@contextmanager
def tmpfs(mount: Path) -> Iterator[bool]:
    """A disk of its own at ``mount``; False when nothing can be mounted here."""
    mount.mkdir()
    is_mounted = os.geteuid() == 0 and _mount_tmpfs(mount, _ROOMY)
    try:
        yield is_mounted
    finally:
        if is_mounted:
            subprocess.run(["umount", "--lazy", str(mount)], check=True)


def _mount_tmpfs(mount: Path, options: str) -> bool:
    words = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(mount)]
    return subprocess.run(words, capture_output=True).returncode == 0


def _refuse(number: int) -> Callable[..., None]:
    def operation(*args: object, **kwargs: object) -> None:
        raise OSError(number, os.strerror(number))

    return operation
