"""One try at a run, as its folder tells of it.

::

    attempts/<n>/attempt.json    state, times, exit code, error; worker and launcher write it
                 owner.json      the process that took it up, created once
                 job.json        the handle that a backend gave out
                 child.json      the process that was started on this machine
                 batch.json      what a batch script saw of it
                 cancel.json     somebody asked for its end
                 stop            asks the worker to save and stop
                 log-<node>.txt progress.json

Whoever creates ``owner.json`` first decides its fate: the worker that takes it up, or a later
launch that finds the launcher dead and buries it. So an attempt whose launcher was killed between
claiming and starting can never come alive afterwards.
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
    def log(self) -> Path:
        """What the first machine wrote; the others have ``log-<node>.txt`` beside it."""
        return self.log_of(0)

    def log_of(self, node: int) -> Path:
        return self.path / f"log-{node}.txt"

    @property
    def record(self) -> dict[str, Any]:
        """What is written about it so far: state, times, exit code, error.

        A worker that was stopped cannot know that its job goes on or ran out of time; the script
        around it does.
        """
        told = read_json(self.path / "attempt.json") or {}
        around = read_json(self.path / "batch.json") or {}
        if told.get("state") == COMPLETED or around.get("state") not in (REQUEUED, TIMEOUT):
            return told
        return told | {"state": around["state"], "error": around.get("reason", "")}

    @property
    def executor(self) -> str:
        """Which launcher it belongs to."""
        return str(self.record.get("executor", LOCAL))

    @property
    def job(self) -> dict[str, Any]:
        """The handle that the backend gave out (``id``), as far as there is one yet."""
        return read_json(self.path / "job.json") or {}

    @property
    def owner(self) -> dict[str, Any] | None:
        """The worker that took it up, ``{"buried": true}``, or None while neither happened."""
        return read_json(self.path / "owner.json")

    @property
    def state(self) -> str:
        """As files and processes of this machine tell it; what is dead here is said to be LOST."""
        owner = self.owner  # read before the record: it is written after, and changed before
        record = self.record
        written = str(record.get("state", LOST))
        if written in FINAL or self.executor != LOCAL:
            return written
        detached = bool(record.get("detached"))
        watched = (detached or owner is None) and is_alive(record.get("launcher", {}))
        if watched or (not detached and any(map(is_alive, self._processes))):
            return PENDING if owner is None else RUNNING
        after = self.record  # it may have ended between the two looks
        return str(after["state"]) if after.get("state") in FINAL else LOST

    @property
    def is_live(self) -> bool:
        """Whether something of it still runs here although nobody wrote, or could, how it ended."""
        if self.executor != LOCAL or self.record.get("state") in FINAL:
            return False
        return any(map(is_alive, self._processes)) or bool(find_marked(self.mark))

    @property
    def mark(self) -> str:
        """The variable by which the processes of this attempt are known on this machine."""
        return f"{MARK}={os.path.realpath(self.path)}"

    @property
    def child(self) -> dict[str, Any]:
        """The process that was started on this machine, if one was; it becomes the worker."""
        return read_json(self.path / CHILD) or {}

    @property
    def _processes(self) -> tuple[dict[str, Any], dict[str, Any]]:
        return self.owner or {}, self.child

    @property
    def is_cancelled(self) -> bool:
        """Somebody asked for its end; whatever exit code follows, that is what ended it."""
        return (self.path / "cancel.json").is_file()

    def request_stop(self, reason: str) -> None:
        """Have the worker save and stop; it works from any machine that sees the folder."""
        write_text(self.path / STOP, reason + "\n")

    def record_cancel(self) -> None:
        """Write down that its end was asked for."""
        write_json(self.path / "cancel.json", {"asked": time.time()})

    @property
    def rank_failure(self) -> dict[str, Any] | None:
        """What a rank other than the first failed with (``error``, ``exit_code``), if any did."""
        told = (read_json(path) for path in sorted(self.path.glob("failure-*.json")))
        return next((failure for failure in told if failure), None)

    @property
    def summary(self) -> dict[str, Any]:
        """For records: number, state, exit code, error and seconds, as far as known."""
        record = self.record
        names = ("exit_code", "error", "seconds")
        known = {name: record[name] for name in names if record.get(name)}
        return {"number": self.number, "state": self.state, **known}

    def take_ownership(self) -> bool:
        """Make this process its worker; False when it was buried or taken up before."""
        under_torchrun = "TORCHELASTIC_RUN_ID" in os.environ
        leader = os.getppid() if under_torchrun else os.getpid()
        return self._own(identify_process(os.getpid()) | {"leader": leader})

    def abandon(self) -> bool:
        """Make sure that it never comes alive; False when a worker has it."""
        return self._own({"buried": True})

    def update(self, **facts: Any) -> None:
        """Add to what is written about it."""
        write_json(self.path / "attempt.json", self.record | redact_leaves(facts))

    def close(self, state: str, **facts: Any) -> None:
        """Write how it ended; what was cancelled and did not complete is CANCELLED."""
        if state != COMPLETED and self.is_cancelled:
            state = CANCELLED
        self.update(state=state, ended=time.time(), **facts)

    def _own(self, owner: Mapping[str, Any]) -> bool:
        return create_text(self.path / "owner.json", json.dumps(owner, indent=2) + "\n")
