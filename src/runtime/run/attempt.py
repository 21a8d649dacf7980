"""One try at a run, as the files of its folder describe it.

::

    attempts/<n>/attempt.json    state, times, exit code, error; worker and launcher write it
                 owner.json      the worker process that owns it; created once
                 job.json        the backend's handle (its ``id``)
                 child.json      the process that was started on this machine
                 batch.json      the state that a batch script reports
                 cancel.json     a user asked for its end
                 stop kill       asks the worker to save and stop, or to end at once
                 sign            touched every few seconds by who carries it out
                 abandoned.json  a user declared its machine gone; its worker has to end
                 said-<node>-<hash>  a message that is in the log of this machine already
                 log-<node>.txt progress.json

Whoever creates ``owner.json`` first decides: the worker that takes ownership, or a later launch
that finds the launcher dead and abandons the attempt. So an attempt whose launcher was killed
between claiming and starting can never come alive afterwards.

The identities of launcher, child and owner are its lease. On the machine, and in the container, in
which they run, they tell for certain whether it lives. From anywhere else they tell only where it
runs: it counts as under way until its end is recorded, or a user declares it lost.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nemotron_style.runtime.atomic import (
    create_text,
    read_facts,
    read_json,
    write_json,
    write_text,
)
from nemotron_style.runtime.process import find_marked, identify_process, is_alive, is_dead
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
KILL = "kill"
SIGN = "sign"
ABANDONED = "abandoned.json"
CHILD = "child.json"
# What changes while it is carried out, by a worker of this version or of an earlier one.
SIGNS = (SIGN, "attempt.json", "owner.json", "progress.json", "log-0.txt")
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
        return read_facts(self.run_dir / "outputs.json") is not None

    @property
    def log(self) -> Path:
        """What the first machine wrote; the others have ``log-<node>.txt`` beside it."""
        return self.log_of(0)

    def log_of(self, node: int) -> Path:
        return self.path / f"log-{node}.txt"

    @property
    def record(self) -> dict[str, Any]:
        """What is written about it so far: state, times, exit code, error."""
        record = read_facts(self.path / "attempt.json") or {}
        batch = read_facts(self.path / "batch.json") or {}
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
        return read_facts(self.path / "job.json") or {}

    @property
    def owner(self) -> dict[str, Any] | None:
        """The worker process that owns it, ``{"buried": true}`` when abandoned, else None."""
        return read_facts(self.path / "owner.json")

    @property
    def state(self) -> str:
        """The state by files and processes; what is proven to have died without a word is LOST."""
        owner = self.owner  # before the record: a worker writes it first, and its record after
        record = self.record
        written = str(record.get("state", LOST))
        if written in FINAL or self.executor != LOCAL:
            return written
        if any(self._may_run(process) for process in self._list_holders(record, owner)):
            return PENDING if owner is None else RUNNING
        ended = self.recorded_end  # it may have ended since the record was read
        return ended.state if ended else LOST

    @property
    def is_live(self) -> bool:
        """Whether a process of it still runs, or may run, although no end is recorded."""
        if self.executor != LOCAL or self.record.get("state") in FINAL:
            return False
        processes = (self.owner or {}, self.child)
        return any(map(self._may_run, processes)) or bool(find_marked(self.mark))

    @property
    def remote_host(self) -> str:
        """Where it is under way out of sight of this process; "" when it is over or in sight."""
        owner, record = self.owner, self.record
        is_submitted = self.executor != LOCAL and "id" in self.job
        if is_submitted or record.get("state") in FINAL:  # its cluster answers from everywhere
            return ""
        for process in self._list_holders(record, owner):
            if not is_alive(process) and self._may_run(process):
                host = str(process.get("host", "another machine"))
                is_here = host == os.uname().nodename
                return f"another container of {host}" if is_here else host
        return ""

    @property
    def may_be_submitted(self) -> bool:
        """Whether the command that began it may be at work still, here or on another machine."""
        return self._may_run(self.record.get("launcher", {}))

    @property
    def last_sign(self) -> float:
        """When who carries it out last gave a sign of life, by the clock of the disk."""
        return max(_read_change(self.path / name) for name in SIGNS)

    @property
    def is_own(self) -> bool:
        """Whether this process began it; its launcher may be another one by now."""
        return bool(self.record.get("claimed_by") == identify_process(os.getpid()))

    @property
    def mark(self) -> str:
        """The variable that identifies the processes of this attempt on this machine."""
        return f"{MARK}={os.path.realpath(self.path)}"

    @property
    def child(self) -> dict[str, Any]:
        """The process that was started on this machine; it becomes the worker, or its parent."""
        return read_facts(self.path / CHILD) or {}

    @property
    def is_cancelled(self) -> bool:
        """Whether a user asked for its end; whatever exit code follows, that is the reason."""
        return os.path.exists(self.path / "cancel.json")

    @property
    def is_kill_requested(self) -> bool:
        """Whether it is to end at once."""
        return os.path.exists(self.path / KILL)

    @property
    def is_abandoned(self) -> bool:
        """Whether a user declared it lost; another attempt may be under way."""
        return os.path.exists(self.path / ABANDONED)

    def request_stop(self, reason: str) -> None:
        """Ask the worker to save and stop, from any machine that sees the folder."""
        write_text(self.path / STOP, reason + "\n")

    def request_kill(self, reason: str) -> None:
        """Ask whoever carries it out to end it at once, from any machine that sees the folder."""
        write_text(self.path / KILL, reason + "\n")

    def give_sign(self) -> None:
        """Show that it is being carried out; a disk that refuses is no reason to fail."""
        with contextlib.suppress(OSError):
            (self.path / SIGN).touch()

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
        return self._own({"buried": True}) or "buried" in (self.owner or {})

    def declare_lost(self, reason: str) -> None:
        """Close it on a user's word; should its worker be alive all the same, it ends itself."""
        self._own({"buried": True})
        write_json(self.path / ABANDONED, {"declared": time.time(), "reason": reason})
        self.close(LOST, error=reason)

    def update(self, **facts: Any) -> None:
        """Add facts to its record."""
        write_json(self.path / "attempt.json", self.record | redact_leaves(facts))

    def close(self, state: str, **facts: Any) -> None:
        """Record how it ended; what was cancelled and did not complete is CANCELLED."""
        if state != COMPLETED and self.is_cancelled:
            state = CANCELLED
        self.update(state=state, ended=time.time(), **facts)

    def _list_holders(
        self, record: Mapping[str, Any], owner: Mapping[str, Any] | None
    ) -> list[Mapping[str, Any]]:
        """The processes that carry it out; a detached one is in the hands of its supervisor."""
        launcher = record.get("launcher", {})
        if record.get("detached") or self.executor != LOCAL:
            return [launcher]
        return [launcher, self.child] if owner is None else [owner, self.child]

    def _may_run(self, process: Mapping[str, Any]) -> bool:
        return is_alive(process) or not is_dead(process, last_sign=self.last_sign)

    def _own(self, owner: Mapping[str, Any]) -> bool:
        return create_text(self.path / "owner.json", json.dumps(owner, indent=2) + "\n")


def _read_change(path: Path) -> float:
    try:
        with open(path, "rb") as file:  # opened, because NFS then asks its server for the time
            return os.fstat(file.fileno()).st_mtime
    except OSError:
        return 0.0
