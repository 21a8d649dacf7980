"""A run on disk: its plan, its attempts, its outputs, and the decisions that were taken about it.

::

    runs/<run_id>/plan.json launch.sh outputs.json          outputs.json: the run is complete
                  decisions/<n>.json
                  attempts/<n>/{attempt,owner,child,job,batch,cancel,progress}.json stop
                               log-<node>.txt
                  metrics.jsonl tensorboard/ checkpoints/ staging/<n>/<slot>/

At most one attempt lives at a time. It is claimed by renaming a filled directory to its number,
which fails when the number is taken. Whoever creates ``owner.json`` first decides its fate: the
worker that takes it up, or a later launch that finds the launcher dead and buries it. So an
attempt whose launcher was killed between claiming and starting can never come alive afterwards.

Files tell how an attempt of this machine stands; what a cluster makes of one, its launcher knows
(:mod:`nemotron_style.runtime.status` asks it).
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nemotron_style.runtime.errors import Problem, RefError, suggest
from nemotron_style.runtime.jsonfile import read_json, remove_tree, write_json, write_text
from nemotron_style.runtime.plan import Plan, load_plan
from nemotron_style.runtime.process import find_marked, identify_process, is_alive
from nemotron_style.runtime.redaction import redact_leaves
from nemotron_style.runtime.state import (
    CANCELLED,
    COMPLETED,
    FAILED,
    FINAL,
    LOST,
    PENDING,
    REQUEUED,
    RUNNING,
    TIMEOUT,
)
from nemotron_style.runtime.store import Store

LOCAL = "local"
STOP = "stop"
CHILD = "child.json"
MARK = "NEMOTRON_STYLE_JOB"


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

    def ask_to_stop(self, reason: str) -> None:
        """Have the worker save and stop; it works from any machine that sees the folder."""
        write_text(self.path / STOP, reason + "\n")

    def note_cancel(self) -> None:
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

    def take_up(self) -> bool:
        """Make this process its worker; False when it was buried or taken up before."""
        under_torchrun = "TORCHELASTIC_RUN_ID" in os.environ
        leader = os.getppid() if under_torchrun else os.getpid()
        return self._own(identify_process(os.getpid()) | {"leader": leader})

    def bury(self) -> bool:
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
        aside = self.path / f".owner-{uuid.uuid4().hex}"
        write_json(aside, owner)
        try:
            os.link(aside, self.path / "owner.json")
        except FileExistsError:
            return False
        finally:
            aside.unlink()
        return True


@dataclass(frozen=True)
class RunFolder:
    """The directory of one run; every property reads it afresh."""

    path: Path

    @property
    def run_id(self) -> str:
        return self.path.name

    @property
    def plan(self) -> Plan:
        """Raises ``UsageError`` when the plan cannot be read or was changed."""
        return load_plan(self.path / "plan.json")

    @property
    def exists(self) -> bool:
        return (self.path / "plan.json").is_file()

    @property
    def outputs(self) -> dict[str, Any] | None:
        """What ``outputs.json`` says (``outputs`` by slot, ``figures``); None until complete."""
        return read_json(self.path / "outputs.json")

    @property
    def attempts(self) -> list[Attempt]:
        """All attempts, the newest last."""
        numbers = _numbers(self.path / "attempts", "")
        return [Attempt(self.path / "attempts" / str(number)) for number in numbers]

    @property
    def last_attempt(self) -> Attempt | None:
        attempts = self.attempts
        return attempts[-1] if attempts else None

    @property
    def state(self) -> str:
        """As its files tell it: that of the newest attempt; COMPLETED as soon as outputs stand."""
        if self.outputs is not None:
            return COMPLETED
        last = self.last_attempt
        return last.state if last else PENDING

    @property
    def seconds(self) -> float:
        """Wall seconds of all attempts that told of their end."""
        records = [attempt.record for attempt in self.attempts]
        ended = [record for record in records if "ended" in record]
        return sum(float(record["ended"] - record["started"]) for record in ended)

    @property
    def decisions(self) -> list[dict[str, Any]]:
        """What was decided about it at each launch, the newest last."""
        folder = self.path / "decisions"
        found = [read_json(folder / f"{number}.json") for number in _numbers(folder, ".json")]
        return [decision for decision in found if decision is not None]

    def claim_attempt(
        self, number: int | None = None, *, executor: str = LOCAL, detached: bool = False
    ) -> Attempt | None:
        """Begin the next attempt in the name of this process; ``number``, if it must be that one.

        None when there is nothing to begin: another one lives, or the run is complete.
        """
        if self.outputs is not None:
            return None
        last = self.last_attempt
        if last and (last.state not in FINAL or last.is_live):
            return None
        if last and last.owner is None and not last.bury():
            return None  # its worker came up after all
        if last and last.record.get("state") not in FINAL:
            failure = last.rank_failure
            last.close(FAILED if failure else LOST, **(failure or {}))
        following = self.next_attempt
        if number not in (None, following):
            return None
        begun = {
            "state": PENDING,
            "started": time.time(),
            "executor": executor,
            "detached": detached,
            "launcher": identify_process(os.getpid()),
        }
        return self._place(following, begun)

    @property
    def next_attempt(self) -> int:
        """The number that the next attempt will have."""
        last = self.last_attempt
        return last.number + 1 if last else 1

    def _place(self, number: int, begun: Mapping[str, Any]) -> Attempt | None:
        final = self.path / "attempts" / str(number)
        aside = self.path / "attempts" / f".{uuid.uuid4().hex}"
        write_json(aside / "attempt.json", begun)
        (aside / "log-0.txt").touch()
        try:
            os.rename(aside, final)
        except OSError as error:
            remove_tree(aside)
            if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
                return None
            raise
        return Attempt(final)

    def reserve(self, plan: Plan) -> bool:
        """Make the folder with its plan, at once; False when there is one already."""
        aside = self.path.with_name(f".{self.run_id}.{uuid.uuid4().hex}")
        write_text(aside / "plan.json", plan.to_json())
        try:
            os.rename(aside, self.path)
        except OSError as error:
            remove_tree(aside)
            if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
                return False
            raise
        return True

    def record_decision(self, decision: Mapping[str, Any]) -> None:
        """Keep what was decided, unless it only repeats what was decided last."""
        earlier = self.decisions
        if earlier and all(earlier[-1].get(key) == value for key, value in decision.items()):
            return
        folder = self.path / "decisions"
        folder.mkdir(parents=True, exist_ok=True)
        number = max(_numbers(folder, ".json"), default=0) + 1
        text = json.dumps({**decision, "decided": time.time()}, indent=2, sort_keys=True) + "\n"
        with contextlib.suppress(FileExistsError), open(folder / f"{number}.json", "x") as file:
            file.write(text)


def list_runs(store: Path, *, step: str = "", limit: int | None = None) -> list[RunFolder]:
    """The runs of a store, or of one of its steps, the newest plan first."""
    prefix = f"{step.replace('/', '-')}-" if step else ""
    paths = (store / "runs").glob(f"{prefix}*")
    runs = [RunFolder(path) for path in paths if not path.name.startswith(".")]
    known = sorted((run for run in runs if run.exists), key=_age, reverse=True)
    if step:  # another step's id may begin with this one's
        known = [run for run in known if len(run.run_id) == len(prefix) + 12]
    return known[:limit]


def find_run(store: Store, word: str) -> RunFolder:
    """The run with this id or unique prefix, the ``latest`` one, or the one that made an artifact.

    Raises ``RefError`` when there is none, or more than one.
    """
    runs = {run.run_id: run for run in list_runs(store.root)}
    if word == "latest" and runs:
        return next(iter(runs.values()))
    fits = [word] if word in runs else [run_id for run_id in runs if run_id.startswith(word)]
    fits = fits or [run_id for run_id in _find_maker(store, word) if run_id in runs]
    if len(fits) != 1:
        raise RefError(_explain_no_run(word, fits, list(runs)))
    return runs[fits[0]]


def _find_maker(store: Store, ref: str) -> list[str]:
    try:
        producer = store.resolve(ref).record.producer
    except RefError:
        return []
    return [producer.run_id] if producer else []


def _explain_no_run(word: str, fits: list[str], known: list[str]) -> Problem:
    what = f"{len(fits)} runs begin so" if fits else "no such run"
    allowed = ", ".join(sorted(fits)[:10])
    fix = suggest(word, known) or "`nemotron-style runs list` names them"
    return Problem(where="RUN", what=what, got=repr(word), allowed=allowed, fix=fix)


def _age(run: RunFolder) -> tuple[float, str]:
    return (run.path / "plan.json").stat().st_mtime, run.run_id


def _numbers(folder: Path, suffix: str) -> list[int]:
    names = os.listdir(folder) if folder.is_dir() else []
    stems = [name.removesuffix(suffix) for name in names if name.endswith(suffix)]
    return sorted(int(stem) for stem in stems if stem.isdigit())
