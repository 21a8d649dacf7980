"""Execute a pipeline and wait for it, or submit all of it and return."""

from __future__ import annotations

import signal
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType
from typing import Any, Protocol

from nemotron_style.runtime.atomic import loosen_umask
from nemotron_style.runtime.errors import (
    Interrupted,
    Problem,
    StepFailed,
    StepsError,
    UsageError,
    raise_all,
)
from nemotron_style.runtime.launch.base import (
    JobHandle,
    Launcher,
    Request,
    attempt_of,
    handle_of,
)
from nemotron_style.runtime.launch.registry import find_launcher
from nemotron_style.runtime.launch.status import read_status, refresh_status
from nemotron_style.runtime.planning.pipeline import Pipeline, PlannedRun
from nemotron_style.runtime.planning.preflight import check_plan
from nemotron_style.runtime.run.folder import RunFolder, open_store
from nemotron_style.runtime.run.kept_run import fetch_outputs
from nemotron_style.runtime.run.state import CANCELLED, COMPLETED, LOST, JobState
from nemotron_style.runtime.secrets.reject import reject_secrets


@dataclass(frozen=True)
class Outcome:
    """The result of one run: ``outputs`` by slot (ref, kind, digest), and its final figures."""

    run: PlannedRun
    outputs: dict[str, dict[str, str]] = field(default_factory=dict)
    figures: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0


@dataclass(frozen=True)
class Submission:
    """A submitted run; ``handle`` is None where there was nothing to submit."""

    run: PlannedRun
    handle: JobHandle | None
    state: JobState


class Watcher(Protocol):
    """The screen that shows a pipeline at work."""

    def begin(self, run: PlannedRun) -> None: ...

    def follow(self, text: str, handle: JobHandle) -> None:
        """Show more of the log; ``text`` is empty from time to time while there is none."""

    def warn(self, text: str) -> None: ...


@dataclass
class Interruption:
    """Ctrl-C or SIGTERM: the first asks the job to save and stop, the second kills it."""

    watcher: Watcher
    handle: JobHandle | None = None
    count: int = 0

    @contextmanager
    def listening(self) -> Iterator[Interruption]:
        """Catch both signals until the end of the block."""
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
            return  # between two runs; the loop over them looks at the count
        if self.count > 2:  # whoever should end it does not answer
            run_id = self.handle.run_dir.name
            raise Interrupted(f"{run_id} may be under way still: nemotron-style runs show {run_id}")
        if self.count == 1:
            self.watcher.warn("asked the step to save and stop; once more kills it")
        try:
            find_launcher(self.handle.executor).cancel(self.handle, force=self.count > 1)
        except StepsError as error:  # a cluster that does not answer just now
            self.watcher.warn(f"the step could not be asked to stop: {error}")


def execute_pipeline(pipeline: Pipeline, *, launcher: Launcher, watcher: Watcher) -> list[Outcome]:
    """Run what has to run, one after the other, and wait for each.

    Raises ``StepFailed``, ``UsageError`` or ``Interrupted``.
    """
    requests = check_and_adopt(pipeline, launcher)
    outcomes = []
    with Interruption(watcher).listening() as interruption:
        for run in pipeline.runs:
            if interruption.count:
                raise Interrupted("stopped between two steps; the same command goes on from here")
            watcher.begin(run)
            request = requests.get(run.plan.run_id)
            outcomes.append(execute_run(run, launcher, interruption, request))
    return outcomes


def check_and_adopt(pipeline: Pipeline, launcher: Launcher) -> dict[str, Request]:
    """The requests to submit, by run id; outside content is in the store afterwards.

    Raises with all that stands in the way of any run.
    """
    due = [run.plan for run in pipeline.runs if run.decision.action in ("run", "resume")]
    requests: dict[str, Request] = {}
    for plan in due:
        attempt = RunFolder(plan.record_dir).next_attempt
        requests[plan.run_id] = launcher.compile(plan, attempt=attempt)
        reject_secrets(requests[plan.run_id].render(), f"the job {plan.run_id}")
    problems = [one for plan in due for one in check_plan(plan, adoptions=pipeline.adoptions)]
    problems += [one for plan in due for one in launcher.check(plan)]
    raise_all(UsageError, list(dict.fromkeys(problems)))
    store = open_store(pipeline.target.plan)
    loosen_umask(store.local)  # logs, and what a supervisor makes, are the group's too
    for adoption in pipeline.adoptions:
        adopted = store.adopt(adoption.location, kind=adoption.kind, name=adoption.name)
        if adopted.digest != adoption.digest:
            what, fix = "changed while the run was being planned", "run the same command again"
            raise UsageError(Problem(where=adoption.location, what=what, fix=fix))
    return requests


def execute_run(
    run: PlannedRun,
    launcher: Launcher,
    interruption: Interruption,
    request: Request | None = None,
) -> Outcome:
    """Reuse a run, or start or attach to it and wait for its end; ``request`` was checked."""
    folder = RunFolder(run.plan.record_dir)
    reused = run.decision.action == "reuse"
    if note := record_decision(run):
        interruption.watcher.warn(note)
    if not reused:
        while True:
            state = follow_run(start_run(run, launcher, request), interruption)
            last = folder.last_attempt
            # One that was dying when this command attached to it begins again, as a moment later.
            if state.state != LOST or last is None or last.is_own or last.is_abandoned:
                break
        if state.state != COMPLETED:
            raise explain_failure(run, state, folder)
    complete = fetch_outputs(folder, open_store(run.plan)) or {}
    made = complete.get("outputs", {})
    outputs = {slot.slot: made[slot.slot] for slot in run.plan.outputs if slot.slot in made}
    return Outcome(run, outputs, complete.get("figures", {}), 0.0 if reused else folder.seconds)


def record_decision(run: PlannedRun) -> str:
    """Keep the decision about a run, for ``runs why``; a note when it could not be kept."""
    decision = {**vars(run.decision), "details": [*run.decision.details]}
    try:
        RunFolder(run.plan.record_dir).record_decision(decision)
    except OSError as error:  # a store that can only be read is good enough to reuse from
        if run.decision.action not in ("reuse", "attach"):
            raise
        return f"note: the decision is not recorded: {error}"
    return ""


def start_run(
    run: PlannedRun,
    launcher: Launcher,
    request: Request | None = None,
    *,
    after: Sequence[JobHandle] = (),
) -> JobHandle:
    """Submit a run as it was rendered and checked, or attach to its live attempt."""
    folder = RunFolder(run.plan.record_dir)
    refresh_status(folder)
    if request is None or request.attempt != folder.next_attempt:
        request = launcher.compile(run.plan, attempt=folder.next_attempt)
    return launcher.submit(request, after=after)


def follow_run(handle: JobHandle, interruption: Interruption) -> JobState:
    """Show the log of an attempt until it ends; returns its final state."""
    launcher = find_launcher(handle.executor)
    interruption.handle = handle
    if interruption.count:  # the signal came while the run was being started
        launcher.cancel(handle)
    for text in launcher.logs(handle):
        interruption.watcher.follow(text, handle)
    interruption.handle = None
    folder = RunFolder(handle.run_dir)
    state, last = refresh_status(folder), folder.last_attempt
    if state.is_final or last is None or last.number == handle.attempt:
        return state
    # This attempt ended, and another command has begun the next one before this one could.
    return follow_run(handle_of(last), interruption)


def explain_failure(run: PlannedRun, state: JobState, folder: RunFolder) -> StepsError:
    """The error that the command line ends with: one line, and where the log is."""
    where = f"{run.plan.step} ({run.plan.config_name})"
    if state.state == CANCELLED:
        what = state.reason or "stopped"
        fix = "" if "the same command" in what else "the same command resumes it"
        return Interrupted(Problem(where=where, what=what, fix=fix))
    last, what = folder.last_attempt, state.reason or f"the step is {state.state}"
    log = last.log if last and run.plan.is_seen else f"nemotron-style runs logs {run.plan.run_id}"
    problem = Problem(where=where, what=what, fix=f"log: {log}")
    return UsageError(problem) if state.exit_code == 2 else StepFailed(problem)


def submit_pipeline(pipeline: Pipeline, *, launcher: Launcher) -> list[Submission]:
    """Submit every run that has to run, each after those that it needs, and return.

    When one is refused, or Ctrl-C arrives meanwhile, the jobs submitted before it are cancelled
    and the error is raised, with the jobs that could not be cancelled.
    """
    requests = check_and_adopt(pipeline, launcher)
    handles: dict[str, JobHandle] = {}
    own: list[JobHandle] = []
    for run in pipeline.runs:
        try:
            record_decision(run)
            if run.decision.action == "reuse":
                continue
            request = requests.get(run.plan.run_id)
            handle = start_run(run, launcher, request, after=find_upstream_jobs(run, handles))
        except (Exception, KeyboardInterrupt) as error:
            left = take_back(own[::-1], launcher)
            if left:
                raise add_problems(error, left) from error
            raise
        handles[run.plan.run_id] = handle
        # What another command began a moment ago is followed, and is not this one's to cancel.
        own += [handle] if attempt_of(handle).is_own else []
    # Only now: a job may have begun, or ended, while later ones were submitted.
    return [
        Submission(run, handles.get(run.plan.run_id), read_status(RunFolder(run.plan.record_dir)))
        for run in pipeline.runs
    ]


def take_back(handles: Sequence[JobHandle], launcher: Launcher) -> list[Problem]:
    """Cancel every one of these jobs; a problem for each that may still be there."""
    problems = []
    stopped = False
    for handle in handles:
        try:
            if not stopped:
                launcher.cancel(handle, force=True)
                continue
            why = "it was not tried"
        except KeyboardInterrupt:  # whoever is in such a hurry gets the list
            why, stopped = "it was interrupted", True
        except Exception as error:
            why = str(error)
        run_id = handle.run_dir.name
        what, fix = f"could not be cancelled: {why}", f"nemotron-style runs cancel --force {run_id}"
        problems.append(Problem(where=run_id, what=what, fix=fix))
    return problems


def add_problems(error: BaseException, more: Sequence[Problem]) -> StepsError:
    """The same error for a user, with more problems after its own."""
    if isinstance(error, StepsError):
        return type(error)([*error.problems, *more])
    if isinstance(error, KeyboardInterrupt):
        return Interrupted([Problem(what="interrupted while jobs were being submitted"), *more])
    return StepFailed([Problem(what=f"{type(error).__name__}: {error}"), *more])


def find_upstream_jobs(run: PlannedRun, handles: Mapping[str, JobHandle]) -> list[JobHandle]:
    """The jobs that make a run's inputs. Raises ``UsageError`` for one on another executor."""
    producers = [planned.producer[0] for planned in run.plan.inputs if planned.producer]
    jobs = [handles[run_id] for run_id in dict.fromkeys(producers) if run_id in handles]
    problems = [
        Problem(
            where=str(run.plan.step),
            what=f"needs {job.run_dir.name}, which is under way on {job.executor}",
            fix=f"wait for it: nemotron-style runs wait {job.run_dir.name}",
        )
        for job in jobs
        if job.executor != run.plan.executor
    ]
    raise_all(UsageError, problems)
    return jobs
