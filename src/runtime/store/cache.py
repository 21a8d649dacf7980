"""Local copies of what lies in a bucket, by digest: fetched once, for all processes.

A copy appears whole, and verified against the record, by a rename. Whoever uses one looks at the
sizes and times that it had then, and fetches it anew when a file was changed. What nobody used for
a while goes with ``artifacts gc``.
"""

from __future__ import annotations

import os
import time
from collections.abc import Collection, Iterator
from functools import partial
from pathlib import Path

from nemotron_style.runtime import atomic
from nemotron_style.runtime.errors import ArtifactError, Problem, raise_all
from nemotron_style.runtime.store.digest import find_files
from nemotron_style.runtime.store.record import Artifact, Record
from nemotron_style.runtime.store.roots.object_path import ObjectPath
from nemotron_style.runtime.store.roots.transfer import fetch_tree
from nemotron_style.runtime.store.verify import verify_files

TIMES = "times.json"
SILENCE_S = 600.0  # who fetches, and got nothing for so long, is taken for dead
WAIT_S = 0.2


def fetch(artifact: Artifact, cache: Path) -> Path:
    """The folder with the files of an artifact that lies in a bucket.

    Raises ArtifactError when what is there is not what was committed.
    """
    entry = _entry(cache, artifact.digest)
    turn = cache / f".turn-{entry.name}"
    while (found := find_cached(artifact.record, cache)) is None:
        if atomic.create_empty(turn):
            try:
                return _download(artifact, entry, turn)
            finally:
                turn.unlink(missing_ok=True)
        # Another process fetches it (every rank of a job asks at once), or died of it.
        if atomic.last_change(turn) < atomic.read_clock(cache) - SILENCE_S:
            turn.unlink(missing_ok=True)
        time.sleep(WAIT_S)
    return found


def _download(artifact: Artifact, entry: Path, turn: Path) -> Path:
    aside = atomic.unique_path(entry.parent, ".fetching")
    files = aside / "files"
    atomic.make_dir(files)
    try:
        assert isinstance(artifact.path, ObjectPath)
        wanted = [(file.path, file.size) for file in artifact.record.files]
        raise_all(ArtifactError, list(_compare_sizes(artifact)))
        fetch_tree(artifact.path, files, wanted, on_range=partial(turn.touch, exist_ok=True))
        raise_all(ArtifactError, verify_files(artifact.record, files))
        return _keep(aside, entry)
    except FileNotFoundError:
        raise_all(ArtifactError, verify_files(artifact.record, artifact.path))
        raise
    finally:
        atomic.remove_tree(aside)


def _compare_sizes(artifact: Artifact) -> Iterator[Problem]:
    """What is missing or has another size; a part of it could not even be asked for."""
    sizes = {found.path: found.source.stat().st_size for found in find_files(artifact.path)}
    for file in artifact.record.files:
        if sizes.get(file.path) != file.size:
            what = "has another size" if file.path in sizes else "is missing"
            yield Problem(where=artifact.ref, key=file.path, what=what)


def find_cached(record: Record, cache: Path) -> Path | None:
    """The local copy of an artifact's files; None when there is none that is whole."""
    entry = _entry(cache, record.digest)
    files = entry / "files"
    noted = atomic.read_json(entry / TIMES)
    if noted is None:
        return None
    times = {path: [int(size), int(changed)] for path, (size, changed) in noted.items()}
    if verify_files(record, files, times=times):
        atomic.remove_tree(entry)  # somebody changed it
        return None
    os.utime(entry)  # when it was last used
    return files


def keep_staged(staged: Path, record: Record, cache: Path) -> None:
    """Make what was just uploaded a local copy; the staged folder is gone then."""
    aside = atomic.unique_path(cache, ".keeping")
    atomic.make_dir(aside)
    os.rename(staged, aside / "files")
    _keep(aside, _entry(cache, record.digest))
    atomic.remove_tree(aside)


def list_unused(cache: Path, *, before: float, keep: Collection[str]) -> Iterator[Path]:
    """The copies, and leftovers of fetching, that nobody used since ``before``."""
    kept = {_entry(cache, digest) for digest in keep}
    for entry in sorted(cache.iterdir()) if cache.is_dir() else []:
        if entry not in kept and entry.stat().st_mtime < before:
            yield entry


def _entry(cache: Path, digest: str) -> Path:
    return cache / digest.removeprefix("sha256:")


def _keep(aside: Path, entry: Path) -> Path:
    times = {}
    for found in find_files(aside / "files"):
        found.source.chmod(0o444)
        state = found.source.stat()
        times[found.path] = [state.st_size, state.st_mtime_ns]
    atomic.write_json(aside / TIMES, times, durable=False)
    atomic.move_dir(aside, entry)  # of several that fetched it at once, one is the first
    return entry / "files"
