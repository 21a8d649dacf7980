"""One try at a run, as the files of its folder describe it.

::

    attempts/<n>/attempt.json    state, times, exit code, error; worker and launcher write it
                 owner.json      the worker process that owns it; created once
                 job.json        the backend's handle (its ``id``)
                 child.json      the process that was started on this machine
                 batch.json      the state that a batch script reports
                 cancel.json     a user asked for its end
                 stop            asks the worker to save and stop
                 log-<node>.txt progress.json

Whoever creates ``owner.json`` first decides: the worker that takes ownership, or a later launch
that finds the launcher dead and abandons the attempt. So an attempt whose launcher was killed
between claiming and starting can never come alive afterwards.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nemotron_style.runtime.atomic import create_text, read_json, write_json, write_text
from nemotron_style.runtime.process import find_marked, identify_process, is_alive
from nemotron_style.runtime.run.state import (
    CANCELLED,
    COMPLETED,
    FINAL,
    LOST,
    PENDING,
    REQUEUED,
    RUNNING,
    TIMEOUT,
    JobState,
)
from nemotron_style.runtime.secrets.redact import redact_leaves

LOCAL = "local"
STOP = "stop"
CHILD = "child.json"
MARK = "NEMOTRON_STYLE_JOB"
ATTEMPT_VARIABLE = "NEMOTRON_STYLE_ATTEMPT"
PARENT_VARIABLE = "NEMOTRON_STYLE_PARENT"


@dataclass(frozen=True)
class Attempt:
    """One try at a run. ``number`` counts from 1."""

    path: Path

    @property
    def number(self) -> int:
        return int(self.path.name)

    @property
    def run_dir(self) -> Path:
        return self.path.parent.parent

    @property
    def is_run_complete(self) -> bool:
        """Whether the run has its outputs, from this attempt or from another."""
        return read_json(self.run_dir / "outputs.json") is not None

    @property
    def log(self) -> Path:
        """What the first machine wrote; the others have ``log-<node>.txt`` beside it."""
        return self.log_of(0)

    def log_of(self, node: int) -> Path:
        return self.path / f"log-{node}.txt"

    @property
    def record(self) -> dict[str, Any]:
        """What is written about it so far: state, times, exit code, error."""
        record = read_json(self.path / "attempt.json") or {}
        batch = read_json(self.path / "batch.json") or {}
        if record.get("state") == COMPLETED or batch.get("state") not in (REQUEUED, TIMEOUT):
            return record
        # A worker that was stopped cannot know that its job goes on, or ran out of time; the
        # batch script around it does.
        return record | {"state": batch["state"], "error": batch.get("reason", "")}

    @property
    def recorded_end(self) -> JobState | None:
        """How it ended, as far as that is written; None while no final state is."""
        record = self.record
        if record.get("state") not in FINAL:
            return None
        return JobState(record["state"], record.get("exit_code"), str(record.get("error", "")))

    @property
    def recorded_state(self) -> str:
        """The state that is written; what has no record yet is PENDING."""
        return str(self.record.get("state", PENDING))

    @property
    def executor(self) -> str:
        """Which launcher it belongs to."""
        return str(self.record.get("executor", LOCAL))

    @property
    def job(self) -> dict[str, Any]:
        """The backend's handle (``id``), empty while there is none."""
        return read_json(self.path / "job.json") or {}

    @property
    def owner(self) -> dict[str, Any] | None:
        """The worker process that owns it, ``{"buried": true}`` when abandoned, else None."""
        return read_json(self.path / "owner.json")

    @property
    def state(self) -> str:
        """The state by files and processes of this machine; what died without a word is LOST."""
        owner = self.owner  # before the record: a worker writes it first, and its record after
        record = self.record
        written = str(record.get("state", LOST))
        if written in FINAL or self.executor != LOCAL:
            return written
        detached = bool(record.get("detached"))
        watched = (detached or owner is None) and is_alive(record.get("launcher", {}))
        if watched or (not detached and self._has_process):
            return PENDING if owner is None else RUNNING
        ended = self.recorded_end  # it may have ended since the record was read
        return ended.state if ended else LOST

    @property
    def is_live(self) -> bool:
        """Whether a process of it still runs on this machine although no end is recorded."""
        if self.executor != LOCAL or self.record.get("state") in FINAL:
            return False
        return self._has_process or bool(find_marked(self.mark))

    @property
    def mark(self) -> str:
        """The variable that identifies the processes of this attempt on this machine."""
        return f"{MARK}={os.path.realpath(self.path)}"

    @property
    def child(self) -> dict[str, Any]:
        """The process that was started on this machine; it becomes the worker, or its parent."""
        return read_json(self.path / CHILD) or {}

    @property
    def _has_process(self) -> bool:
        return is_alive(self.owner or {}) or is_alive(self.child)

    @property
    def is_cancelled(self) -> bool:
        """Whether a user asked for its end; whatever exit code follows, that is the reason."""
        return (self.path / "cancel.json").is_file()

    def request_stop(self, reason: str) -> None:
        """Ask the worker to save and stop, from any machine that sees the folder."""
        write_text(self.path / STOP, reason + "\n")

    def record_cancel(self) -> None:
        """Record that a user asked for its end."""
        write_json(self.path / "cancel.json", {"asked": time.time()})

    @property
    def rank_failure(self) -> dict[str, Any] | None:
        """The failure (``error``, ``exit_code``) of a rank other than the first, or None."""
        failures = (read_json(path) for path in sorted(self.path.glob("failure-*.json")))
        return next(filter(None, failures), None)

    @property
    def summary(self) -> dict[str, Any]:
        """For records: number, state, exit code, error and seconds, as far as known."""
        record = self.record
        names = ("exit_code", "error", "seconds")
        known = {name: record[name] for name in names if record.get(name)}
        return {"number": self.number, "state": self.state, **known}

    def take_ownership(self) -> bool:
        """Make this process its worker; False when it has an owner or was abandoned."""
        # Whoever stops the job must know torchrun's agent from a worker: the agent gets no signal.
        under_torchrun = "TORCHELASTIC_RUN_ID" in os.environ
        leader = os.getppid() if under_torchrun else os.getpid()
        return self._own(identify_process(os.getpid()) | {"leader": leader})

    def abandon(self) -> bool:
        """Make sure that no worker ever starts on it; False when one has."""
        return self._own({"buried": True})

    def update(self, **facts: Any) -> None:
        """Add facts to its record."""
        write_json(self.path / "attempt.json", self.record | redact_leaves(facts))

    def close(self, state: str, **facts: Any) -> None:
        """Record how it ended; what was cancelled and did not complete is CANCELLED."""
        if state != COMPLETED and self.is_cancelled:
            state = CANCELLED
        self.update(state=state, ended=time.time(), **facts)

    def _own(self, owner: Mapping[str, Any]) -> bool:
        return create_text(self.path / "owner.json", json.dumps(owner, indent=2) + "\n")
