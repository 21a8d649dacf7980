"""Local copies of what lies in a bucket, by digest: fetched once, for all processes.

A copy appears whole, and verified against the record, by a rename. Whoever uses one looks at the
sizes and times that it had then, and fetches it anew when a file was changed. What nobody used for
a while goes with ``artifacts gc``.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from pathlib import Path

from nemotron_style.runtime import atomic
from nemotron_style.runtime.errors import ArtifactError, raise_all
from nemotron_style.runtime.store.digest import find_files
from nemotron_style.runtime.store.record import Artifact, Record
from nemotron_style.runtime.store.roots.object_path import ObjectPath
from nemotron_style.runtime.store.roots.transfer import fetch_tree
from nemotron_style.runtime.store.verify import verify_files

TIMES = "times.json"


def fetch(artifact: Artifact, cache: Path) -> Path:
    """The folder with the files of an artifact that lies in a bucket.

    Raises ArtifactError when what is there is not what was committed.
    """
    entry = _entry(cache, artifact.digest)
    if (found := find_cached(artifact.record, cache)) is not None:
        return found
    aside = atomic.unique_path(cache, ".fetching")
    files = aside / "files"
    atomic.make_dir(files)
    try:
        assert isinstance(artifact.path, ObjectPath)
        wanted = [(file.path, file.size) for file in artifact.record.files]
        fetch_tree(artifact.path, files, wanted)
        raise_all(ArtifactError, verify_files(artifact.record, files))
        return _keep(aside, entry)
    except FileNotFoundError:
        raise_all(ArtifactError, verify_files(artifact.record, artifact.path))
        raise
    finally:
        atomic.remove_tree(aside)


def find_cached(record: Record, cache: Path) -> Path | None:
    """The local copy of an artifact's files; None when there is none that is whole."""
    entry = _entry(cache, record.digest)
    files = entry / "files"
    noted = atomic.read_json(entry / TIMES)
    if noted is None:
        return None
    times = {path: [int(size), int(time)] for path, (size, time) in noted.items()}
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
