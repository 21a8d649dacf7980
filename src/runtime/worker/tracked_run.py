"""A run as a tracker of experiments gets it, and what the client of a tracker has to do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

FINISHED, FAILED, INTERRUPTED = "finished", "failed", "interrupted"
ERROR_TAG = "nemotron_style.error"


@dataclass(frozen=True)
class TrackedArtifact:
    """An artifact that the run read or made, as a tracker gets it: nothing of its content."""

    ref: str
    kind: str
    digest: str

    @property
    def url(self) -> str:
        """What names the artifact and its content, for trackers that refer to things by URL."""
        return f"nemotron-style://{self.ref}/{self.digest}"


@dataclass(frozen=True)
class TrackedRun:
    """Our run as a tracker gets it: the compiled config as ``params``, the rest as ``tags``.

    ``inputs`` are the artifacts that it reads, by slot.
    """

    folder: Path
    run_id: str
    step: str
    params: Mapping[str, Any]
    tags: Mapping[str, str]
    inputs: Mapping[str, TrackedArtifact]


class Client(Protocol):
    """A tracker's own client; everything that it raises means that the tracker cannot be had."""

    def begin(self, run: TrackedRun, earlier: Mapping[str, str]) -> Mapping[str, str]:
        """Open our run in the tracker, or go on in the ``earlier`` one.

        What comes back has its ``id`` and, for people, ``where`` it can be looked at; ``open`` is a
        folder that has what it is told only after ``end``. ``earlier`` is what came back before.
        """

    def log(self, rows: Sequence[tuple[int, Mapping[str, float]]]) -> None:
        """Add metrics, by step."""

    def end(
        self, status: str, tags: Mapping[str, str], outputs: Mapping[str, TrackedArtifact]
    ) -> None:
        """Say how it ended, with what is known at the end alone: tags, and what it made."""
