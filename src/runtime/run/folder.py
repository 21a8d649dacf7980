"""A run on disk: its plan, its attempts, its outputs, and what was decided about it.

::

    runs/<run_id>/plan.json launch.sh outputs.json          outputs.json: the run is complete
                  decisions/<n>.json
                  attempts/<n>/                             see nemotron_style.runtime.run.attempt
                  metrics.jsonl tensorboard/ checkpoints/ staging/<n>/<slot>/
                  trackers/<name>.json                      which of a tracker's runs is this one

At most one attempt lives at a time. It is claimed by renaming a filled directory to its number,
which fails when the number is taken. Files alone give the state of an attempt of this machine;
that of a cluster's job needs its launcher (:mod:`nemotron_style.runtime.launch.status`).
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

from nemotron_style.runtime import atomic
from nemotron_style.runtime.process import identify_process
from nemotron_style.runtime.run.attempt import LOCAL, Attempt
from nemotron_style.runtime.run.plan import Plan, load_plan
from nemotron_style.runtime.run.run_key import key_of_run
from nemotron_style.runtime.run.state import COMPLETED, FAILED, FINAL, LOST, PENDING
from nemotron_style.runtime.store.store import Store

TRACKERS = "trackers"
SEAL = "sealed.json"  # in a folder of staged outputs: they are final, and only to be committed


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
        return atomic.read_facts(self.path / "outputs.json")

    @property
    def attempts(self) -> list[Attempt]:
        """All attempts, the newest last."""
        numbers = _numbers(self.path / "attempts", "")
        return [Attempt(self.path / "attempts" / str(number)) for number in numbers]

    @property
    def last_attempt(self) -> Attempt | None:
        return next(reversed(self.attempts), None)

    @property
    def next_attempt(self) -> int:
        """The number that the next attempt will have."""
        last = self.last_attempt
        return last.number + 1 if last else 1

    @property
    def state(self) -> str:
        """COMPLETED as soon as there are outputs, else the state of the newest attempt's files."""
        if self.outputs is not None:
            return COMPLETED
        last = self.last_attempt
        return last.state if last else PENDING

    @property
    def trackers(self) -> dict[str, dict[str, str]]:
        """What each tracker calls this run (``id``), and ``where`` it shows it; by its name."""
        files = sorted((self.path / TRACKERS).glob("*.json"))
        records = {file.stem: atomic.read_facts(file) for file in files}
        shown = ("id", "where")
        return {name: {key: one[key] for key in shown} for name, one in records.items() if one}

    @property
    def seconds(self) -> float:
        """Wall seconds of all attempts whose beginning and end are recorded."""
        records = [attempt.record for attempt in self.attempts]
        ended = [record for record in records if {"started", "ended"} <= record.keys()]
        return sum(float(record["ended"] - record["started"]) for record in ended)

    @property
    def decisions(self) -> list[dict[str, Any]]:
        """What was decided about it at each launch, the newest last."""
        folder = self.path / "decisions"
        numbers = _numbers(folder, ".json")
        decisions = (atomic.read_json(folder / f"{number}.json") for number in numbers)
        return [decision for decision in decisions if decision is not None]

    def claim_attempt(
        self, number: int | None = None, *, executor: str = LOCAL, detached: bool = False
    ) -> Attempt | None:
        """Begin the next attempt in the name of this process; ``number``, if it must be that one.

        None when there is nothing to begin: another one lives, or may live on another machine, or
        the run is complete.
        """
        if self.outputs is not None:
            return None
        # Looked up once: what is found out about it says nothing of one that begins meanwhile.
        last = self.last_attempt
        if last and not _end(last):
            return None
        claimed = Attempt(self.path / "attempts" / str(last.number + 1 if last else 1))
        if number not in (None, claimed.number):
            return None
        record = {
            "state": PENDING,
            "started": time.time(),
            "executor": executor,
            "detached": detached,
            "launcher": identify_process(os.getpid()),
            "claimed_by": identify_process(os.getpid()),
        }
        aside = atomic.unique_path(claimed.path.parent, ".claim")
        atomic.write_json(aside / "attempt.json", record)
        (aside / "log-0.txt").touch()
        return claimed if _move_or_remove(aside, claimed.path) else None

    def reserve(self, plan: Plan) -> bool:
        """Make the folder with its plan, at once; False when there is one already."""
        aside = atomic.unique_path(self.path.parent, f".{self.run_id}")
        atomic.write_text(aside / "plan.json", plan.to_json())
        # The key first: a run that has none is found only where all folders are looked at.
        key = key_of_run(self.path, plan.step, aside / "plan.json")
        with contextlib.suppress(OSError):
            atomic.create_empty(key)
        if _move_or_remove(aside, self.path):
            return True
        key.unlink(missing_ok=True)
        return False

    def record_decision(self, decision: Mapping[str, Any]) -> None:
        """Keep what was decided, unless it only repeats what was decided last."""
        earlier = self.decisions
        if earlier and all(earlier[-1].get(key) == value for key, value in decision.items()):
            return
        folder = self.path / "decisions"
        number = max(_numbers(folder, ".json"), default=0) + 1
        text = json.dumps({**decision, "decided": time.time()}, indent=2, sort_keys=True) + "\n"
        # A number that another launch took meanwhile speaks for both.
        atomic.create_text(folder / f"{number}.json", text)


def _end(attempt: Attempt) -> bool:
    """Make sure that an attempt is over, and that its end is recorded; False when it lives."""
    if attempt.state not in FINAL or attempt.is_live:
        return False
    if attempt.owner is None and not attempt.abandon():
        return False  # its worker started after all
    if attempt.recorded_end is None:
        failure = attempt.rank_failure
        with contextlib.suppress(PermissionError):  # somebody else's; it is over all the same
            attempt.close(FAILED if failure else LOST, **(failure or {}))
    return True


def _move_or_remove(aside: Path, final: Path) -> bool:
    """Put a filled directory in place; False, and the directory is gone, when that is taken."""
    if atomic.move_dir(aside, final):
        return True
    atomic.remove_tree(aside)
    return False


def open_store(plan: Plan) -> Store:
    """The store of a plan, as the command line sees it."""
    local = plan.records or plan.store
    return Store(plan.root or local, scratch=local)


def _numbers(folder: Path, suffix: str) -> list[int]:
    names = os.listdir(folder) if folder.is_dir() else []
    stems = [name.removesuffix(suffix) for name in names if name.endswith(suffix)]
    return sorted(int(stem) for stem in stems if stem.isdigit())
