"""Carry out a pipeline, one run after the other, and tell a watcher what happens."""

from __future__ import annotations

import signal
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType
from typing import Any, Protocol

from nemotron_style.runtime.errors import (
    Interrupted,
    Problem,
    StepFailed,
    StepsError,
    UsageError,
    raise_all,
)
from nemotron_style.runtime.launch.base import JobHandle, Launcher
from nemotron_style.runtime.launch.registry import find_launcher
from nemotron_style.runtime.launch.status import read_status, refresh_status
from nemotron_style.runtime.planning.planner import Pipeline, PlannedRun
from nemotron_style.runtime.planning.preflight import check_plan
from nemotron_style.runtime.run.folder import RunFolder
from nemotron_style.runtime.run.state import CANCELLED, COMPLETED, JobState
from nemotron_style.runtime.secrets.reject import refuse_secrets
from nemotron_style.runtime.store.store import Store


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
        try:
            find_launcher(self.handle.executor).cancel(self.handle, force=self.count > 1)
        except StepsError as error:  # a cluster that does not answer just now
            self.watcher.warn(f"could not be asked: {error}")


def execute_pipeline(pipeline: Pipeline, *, launcher: Launcher, watcher: Watcher) -> list[Outcome]:
    """Run what has to run. Raises ``StepFailed``, ``UsageError`` or ``Interrupted``."""
    prepare(pipeline, launcher)
    outcomes = []
    with Interruption(watcher).listening() as interruption:
        for run in pipeline.runs:
            if interruption.count:
                raise Interrupted("stopped between two steps; the same command goes on from here")
            watcher.begin(run)
            outcomes.append(carry_out_one(run, launcher, interruption))
    return outcomes


def prepare(pipeline: Pipeline, launcher: Launcher) -> None:
    """Look for what stands in the way of any run; then bring in what comes from outside."""
    due = [run.plan for run in pipeline.runs if run.decision.action in ("run", "resume")]
    for plan in due:
        refuse_secrets(launcher.compile(plan).render(), f"the job {plan.run_id}")
    problems = [one for plan in due for one in check_plan(plan, adoptions=pipeline.adoptions)]
    problems += [one for plan in due for one in launcher.check(plan)]
    raise_all(UsageError, list(dict.fromkeys(problems)))
    store = Store(pipeline.target.plan.records or pipeline.target.plan.store)
    for adoption in pipeline.adoptions:
        store.adopt(adoption.location, kind=adoption.kind, name=adoption.name)


def carry_out_one(run: PlannedRun, launcher: Launcher, interruption: Interruption) -> Outcome:
    """Reuse, follow or start one run, and wait for its end."""
    folder = RunFolder(run.plan.record_dir)
    record_decision(run)
    if run.decision.action != "reuse":
        handle = start(run, launcher)
        state = wait(handle, interruption)
        if state.state != COMPLETED:
            raise describe_failure(run, state, folder)
    complete = folder.outputs or {}
    made = complete.get("outputs", {})
    outputs = {slot.slot: made[slot.slot] for slot in run.plan.outputs if slot.slot in made}
    seconds = 0.0 if run.decision.action == "reuse" else folder.seconds
    return Outcome(run, outputs, complete.get("figures", {}), seconds)


def record_decision(run: PlannedRun) -> None:
    """Keep what was decided about a run, for ``runs why``."""
    decision = run.decision
    told = {"action": decision.action, "reason": decision.reason, "details": [*decision.details]}
    RunFolder(run.plan.record_dir).record_decision(told)


def start(run: PlannedRun, launcher: Launcher, *, after: Sequence[JobHandle] = ()) -> JobHandle:
    """Submit a run, or take hold of the attempt that lives."""
    folder = RunFolder(run.plan.record_dir)
    refresh_status(folder)
    request = launcher.compile(run.plan, attempt=folder.next_attempt)
    return launcher.submit(request, after=after)


def wait(handle: JobHandle, interruption: Interruption) -> JobState:
    """Follow the log to the end."""
    launcher = find_launcher(handle.executor)
    interruption.handle = handle
    if interruption.count:  # asked to stop while it was being started
        launcher.cancel(handle)
    for text in launcher.logs(handle):
        interruption.watcher.follow(text, handle)
    interruption.handle = None
    return refresh_status(RunFolder(handle.run_dir))


@dataclass(frozen=True)
class Submission:
    """A run that was handed over; ``handle`` is None when there was nothing to do about it."""

    run: PlannedRun
    handle: JobHandle | None
    state: JobState


def submit_pipeline(pipeline: Pipeline, *, launcher: Launcher) -> list[Submission]:
    """Submit every run that has to run, each after those that it needs, and return.

    When one is refused, or Ctrl-C comes between, those submitted before it are ended again, and
    the error is raised.
    """
    prepare(pipeline, launcher)
    handles: dict[str, JobHandle] = {}
    own: list[JobHandle] = []
    for run in pipeline.runs:
        record_decision(run)
        if run.decision.action == "reuse":
            continue
        try:
            handle = start(run, launcher, after=find_needed(run, handles))
        except (Exception, KeyboardInterrupt):
            for submitted in reversed(own):
                launcher.cancel(submitted, force=True)
            raise
        handles[run.plan.run_id] = handle
        own += [handle] if run.decision.action != "attach" else []
    folders = [RunFolder(run.plan.record_dir) for run in pipeline.runs]
    return [
        Submission(run, handles.get(run.plan.run_id), read_status(folder))
        for run, folder in zip(pipeline.runs, folders, strict=True)
    ]


def find_needed(run: PlannedRun, handles: Mapping[str, JobHandle]) -> list[JobHandle]:
    """The jobs that make the inputs of a run. Raises ``UsageError`` for one of another place."""
    producers = [planned.producer[0] for planned in run.plan.inputs if planned.producer]
    needed = [handles[run_id] for run_id in dict.fromkeys(producers) if run_id in handles]
    problems = [
        Problem(
            where=str(run.plan.step),
            what=f"needs {handle.run_dir.name}, which is under way on {handle.executor}",
            fix=f"wait for it: nemotron-style runs wait {handle.run_dir.name}",
        )
        for handle in needed
        if handle.executor != run.plan.executor
    ]
    raise_all(UsageError, problems)
    return needed


def describe_failure(run: PlannedRun, state: JobState, folder: RunFolder) -> Exception:
    """The error that the command line ends with: one line, and where the log is."""
    last = folder.last_attempt
    log = str(last.log) if last else ""
    where = f"{run.plan.step} ({run.plan.config_name})"
    if state.state == CANCELLED:
        what = state.reason or "stopped"
        return Interrupted(Problem(where=where, what=what, fix="the same command resumes it"))
    what = state.reason or f"the step is {state.state}"
    problem = Problem(where=where, what=what, fix=f"log: {log}")
    return UsageError(problem) if state.exit_code == 2 else StepFailed(problem)
