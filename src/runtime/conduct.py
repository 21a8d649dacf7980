"""Carry out a pipeline, one run after the other, and tell a watcher what happens."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType
from typing import Any, Protocol

from nemotron_style.runtime.errors import Interrupted, Problem, StepFailed, UsageError
from nemotron_style.runtime.launch.base import JobHandle, JobState, Launcher
from nemotron_style.runtime.pipeline import Pipeline, PlannedRun
from nemotron_style.runtime.run import RunFolder
from nemotron_style.runtime.store import Store


@dataclass(frozen=True)
class Outcome:
    """What became of one run: ``outputs`` by slot (ref, kind, digest), and its figures."""

    run: PlannedRun
    outputs: dict[str, dict[str, str]] = field(default_factory=dict)
    figures: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0


class Watcher(Protocol):
    """Whoever shows a pipeline at work."""

    def begin(self, run: PlannedRun) -> None: ...

    def follow(self, text: str, handle: JobHandle) -> None:
        """More of the log; "" from time to time when there is none."""

    def warn(self, text: str) -> None: ...


@dataclass
class Interruption:
    """What Ctrl-C and SIGTERM do: the first asks the job to save and stop, the second kills it."""

    launcher: Launcher
    watcher: Watcher
    handle: JobHandle | None = None
    count: int = 0

    @contextmanager
    def listening(self) -> Iterator[Interruption]:
        """Catch both signals for a while."""
        numbers = (signal.SIGINT, signal.SIGTERM)
        before = {number: signal.signal(number, self._catch) for number in numbers}
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _catch(self, number: int, frame: FrameType | None) -> None:
        self.count += 1
        if self.handle is None:
            return  # noticed before the next run is started
        if self.count == 1:
            self.watcher.warn("asked the step to save and stop; once more kills it")
        self.launcher.cancel(self.handle, force=self.count > 1)


def carry_out(pipeline: Pipeline, *, launcher: Launcher, watcher: Watcher) -> list[Outcome]:
    """Run what has to run. Raises ``StepFailed``, ``UsageError`` or ``Interrupted``."""
    store = Store(pipeline.target.plan.store)
    for adoption in pipeline.adoptions:
        store.adopt(adoption.location, kind=adoption.kind, name=adoption.name)
    outcomes = []
    with Interruption(launcher, watcher).listening() as interruption:
        for run in pipeline.runs:
            if interruption.count:
                raise Interrupted("stopped between two steps; the same command goes on from here")
            watcher.begin(run)
            outcomes.append(carry_out_one(run, interruption))
    return outcomes


def carry_out_one(run: PlannedRun, interruption: Interruption) -> Outcome:
    """Reuse, follow or start one run, and wait for its end."""
    folder = RunFolder(run.plan.run_dir)
    decision = run.decision
    told = {"action": decision.action, "reason": decision.reason, "details": [*decision.details]}
    folder.record_decision(told)
    if decision.action != "reuse":
        state = wait(run, interruption)
        if state.state != "completed":
            raise describe_failure(run, state, folder)
    complete = folder.outputs or {}
    made = complete.get("outputs", {})
    outputs = {slot.slot: made[slot.slot] for slot in run.plan.outputs if slot.slot in made}
    seconds = 0.0 if decision.action == "reuse" else folder.seconds
    return Outcome(run, outputs, complete.get("figures", {}), seconds)


def wait(run: PlannedRun, interruption: Interruption) -> JobState:
    """Start or attach, and follow the log to the end."""
    launcher = interruption.launcher
    handle = launcher.submit(launcher.compile(run.plan))
    interruption.handle = handle
    if interruption.count:  # asked to stop while it was being started
        launcher.cancel(handle)
    for text in launcher.logs(handle):
        interruption.watcher.follow(text, handle)
    interruption.handle = None
    return launcher.state(handle)


def describe_failure(run: PlannedRun, state: JobState, folder: RunFolder) -> Exception:
    """The error that the command line ends with: one line, and where the log is."""
    last = folder.last_attempt
    log = str(last.log) if last else ""
    where = f"{run.plan.step} ({run.plan.config_name})"
    if state.state == "stopped":
        what = state.error or "stopped"
        return Interrupted(Problem(where=where, what=what, fix="the same command resumes it"))
    what = state.error or f"the step {state.state}"
    problem = Problem(where=where, what=what, fix=f"log: {log}")
    return UsageError(problem) if state.exit_code == 2 else StepFailed(problem)
