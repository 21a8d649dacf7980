"""States that a run can continue from: whole or absent, newest first.

A checkpoint is staged aside by all ranks, and committed by the first one: contents forced to the
disk, a marker with every file's digest written last, then one rename makes it visible.
"""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import dataclass
from pathlib import Path

from nemotron_style.runtime import atomic

MARKER = "checkpoint.json"
_NAME = re.compile(r"step-(\d{8,})")


@dataclass(frozen=True)
class Checkpoint:
    """A whole checkpoint: the training step after which it was taken, and its directory."""

    step: int
    path: Path


class Checkpoints:
    """The checkpoints of one run.

    Saving, on every rank: ``path = stage(step)``; write into it; a barrier; ``commit(step)``
    (only the first rank does anything); a barrier. The barriers are the recipe's.
    """

    def __init__(self, run_dir: Path, *, attempt: int = 1, rank: int = 0) -> None:
        self._root = run_dir / "checkpoints"
        self._attempt = attempt
        self._rank = rank

    def beside(self, name: str) -> Checkpoints:
        """Another series of this run, whose checkpoints are counted and dropped apart."""
        return Checkpoints(self._root / name, attempt=self._attempt, rank=self._rank)

    def newest(self) -> Checkpoint | None:
        """The newest one whose every file is what was written, or None."""
        return next((each for each in reversed(self._committed()) if is_whole(each.path)), None)

    def at(self, step: int) -> Checkpoint | None:
        """The one taken after ``step``, or None when there is none whose files are whole."""
        taken = (each for each in self._committed() if each.step == step)
        return next((each for each in taken if is_whole(each.path)), None)

    def stage(self, step: int) -> Path:
        """The directory to write the state after ``step`` into; the same for all ranks."""
        path = self._staged(step)
        path.mkdir(parents=True, exist_ok=True)
        return path

    def commit(self, step: int, keep: int = 2) -> None:
        """Make the staged state of ``step`` visible and drop all but the ``keep`` newest."""
        if self._rank != 0:
            return
        staged, final = self._staged(step), self._root / f"step-{step:08d}"
        digests = digest_files(staged)
        atomic.sync_tree(staged)
        atomic.write_json(staged / MARKER, {"step": step, "files": digests})
        atomic.remove_tree(final)  # the same step of an attempt that was continued from before it
        os.rename(staged, final)
        atomic.sync(self._root)
        for old in self._committed()[:-keep]:
            (old.path / MARKER).unlink(
                missing_ok=True
            )  # first, so that half of it is no checkpoint
            atomic.remove_tree(old.path)

    def discard_staged(self) -> None:
        """Delete what earlier attempts staged and did not commit."""
        for path in self._root.glob(".attempt-*"):
            if not path.name.startswith(f".attempt-{self._attempt}-"):
                atomic.remove_tree(path)

    def _staged(self, step: int) -> Path:
        # Named by attempt: ranks that start late cannot meet the leftovers of an earlier one.
        return self._root / f".attempt-{self._attempt}-step-{step:08d}"

    def _committed(self) -> list[Checkpoint]:
        if not self._root.is_dir():
            return []
        matches = [(_NAME.fullmatch(path.name), path) for path in self._root.iterdir()]
        committed = [Checkpoint(int(match[1]), path) for match, path in matches if match]
        return sorted(committed, key=lambda each: each.step)


def is_whole(path: Path) -> bool:
    """Whether the marker is there and every file has the digest it names."""
    marker = atomic.read_json(path / MARKER)
    return marker is not None and marker.get("files") == digest_files(path)


def digest_files(root: Path) -> dict[str, str]:
    """SHA-256 of every file under ``root`` by relative path, the marker left out."""
    digests = {}
    for path in root.rglob("*"):
        if path.is_file() and path != root / MARKER:
            with open(path, "rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            digests[path.relative_to(root).as_posix()] = digest
    return digests
