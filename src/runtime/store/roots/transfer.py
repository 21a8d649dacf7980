"""Trees of files on their way to a bucket and back.

An upload that was cut off goes on where it was: beside the staged tree a note keeps the version
that was claimed for it, the uploads that have begun, and the tags of the files that are there.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from nemotron_style.runtime import atomic
from nemotron_style.runtime.store.roots.object_path import ObjectPath
from nemotron_style.runtime.store.roots.progress import Progress
from nemotron_style.runtime.store.roots.threads import map_in_threads

FILES_AT_ONCE = 4
RANGE = 16 << 20
RESENT = 1 << 20  # bytes: to send a smaller file again costs less than to ask whether it is there


class UploadNote(dict[str, str]):
    """What a later attempt has to know, by key, on the disk beside a staged tree."""

    def __init__(self, staged: Path) -> None:
        self.path = staged.with_name(f".{staged.name}.upload.json")
        self._lock = threading.Lock()
        super().__init__(atomic.read_json(self.path) or {})

    def __setitem__(self, key: str, value: str) -> None:
        super().__setitem__(key, value)
        self._save()

    def pop(self, key: str, *default: Any) -> Any:
        value = super().pop(key, *default)
        self._save()
        return value

    def _save(self) -> None:
        with self._lock:  # else an older text could be written last
            atomic.write_text(self.path, json.dumps(dict(self)), durable=False)


def send_tree(staged: Path, directory: ObjectPath) -> dict[str, str]:
    """Send every file of a staged tree to a place that is ours; the tags there, by path."""
    note = UploadNote(staged)
    bucket = directory.bucket
    files = sorted(path for path in staged.rglob("*") if path.is_file())
    paths = [path.relative_to(staged).as_posix() for path in files]
    sizes = [path.stat().st_size for path in files]
    progress = Progress(f"uploading {directory.key}", sum(sizes))

    def send(file: Path, path: str, size: int) -> str:
        key = (directory / path).key
        state = bucket.state(key) if f"sent {key}" in note else None
        if state and (state.size, state.tag) == (size, note[f"sent {key}"]):
            progress.add(size)
            return state.tag
        tag = bucket.upload(file, key, uploads=note, progress=progress)
        if size > RESENT:
            note[f"sent {key}"] = tag
        return tag

    waiting = zip(files, paths, sizes, strict=True)
    tags = map_in_threads(lambda one: send(*one), waiting, threads=FILES_AT_ONCE)
    return dict(zip(paths, tags, strict=True))


def forget_upload(staged: Path) -> None:
    """Remove the note of an upload that is over."""
    with suppress(FileNotFoundError):
        UploadNote(staged).path.unlink()


def fetch_tree(
    directory: ObjectPath,
    target: Path,
    files: Sequence[tuple[str, int]],
    *,
    on_range: Callable[[], None],
) -> None:
    """Bring files (path, size) of a bucket into the folder ``target``, several ranges at once.

    ``on_range`` is called after each. Raises FileNotFoundError when one is not there.
    """
    progress = Progress(f"downloading {directory.key}", sum(size for _path, size in files))
    ranges = [
        (path, start, min(start + RANGE, size))
        for path, size in files
        for start in range(0, max(size, 1), RANGE)
    ]
    for path, size in files:
        place = target / path
        place.parent.mkdir(parents=True, exist_ok=True)
        with place.open("xb") as stream:
            stream.truncate(size)

    def fetch(one: tuple[str, int, int]) -> None:
        path, start, end = one
        data = directory.bucket.read_range((directory / path).key, start, end) if end else b""
        with (target / path).open("r+b") as stream:
            os.pwrite(stream.fileno(), data, start)
        progress.add(len(data))
        on_range()

    map_in_threads(fetch, ranges, threads=2 * FILES_AT_ONCE)
