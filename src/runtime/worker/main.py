"""The inside of a run: ``python -m nemotron_style.runtime.worker <run dir>/plan.json [SERVICE]``.

Under torchrun every rank runs this module; the first one alone writes records. With the name of a
service of the plan, that service runs instead of the step.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

from nemotron_style.runtime.atomic import loosen_umask, remove_tree, write_json
from nemotron_style.runtime.config.model import StepConfig
from nemotron_style.runtime.errors import (
    Interrupted,
    Problem,
    StepFailed,
    StepsError,
    UsageError,
    raise_all,
)
from nemotron_style.runtime.run.attempt import ATTEMPT_VARIABLE, PARENT_VARIABLE, STOP, Attempt
from nemotron_style.runtime.run.code import digest_code
from nemotron_style.runtime.run.folder import RunFolder
from nemotron_style.runtime.run.lease import keep_lease
from nemotron_style.runtime.run.plan import Plan, load_sealed_plan
from nemotron_style.runtime.run.snapshot import check_snapshot
from nemotron_style.runtime.run.state import CANCELLED, COMPLETED, FAILED, RUNNING, JobState
from nemotron_style.runtime.run.token_contract import check_tokens
from nemotron_style.runtime.secrets.detect import announce_secrets
from nemotron_style.runtime.secrets.redact import redact, redacted_output
from nemotron_style.runtime.shell_environment import find_rank_variables
from nemotron_style.runtime.step.context import ProcessRank, StepContext, Stop
from nemotron_style.runtime.store.record import Artifact
from nemotron_style.runtime.store.staged.ahead import HashAhead
from nemotron_style.runtime.worker.inputs import bind_config, load_object, open_inputs
from nemotron_style.runtime.worker.outputs import Task, commit_outputs, find_sealed, seal
from nemotron_style.runtime.worker.services import await_service, end_services
from nemotron_style.runtime.worker.tracking import track

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


def main(arguments: Sequence[str]) -> int:
    """Execute one attempt; the exit code is 0, 1 (failed), 2 (unusable) or 130 (stopped)."""
    # No character that a recipe prints ends it, whatever the locale.
    sys.stdout.reconfigure(line_buffering=True, errors="backslashreplace")  # type: ignore[union-attr]
    path, *service = arguments
    stop = ignore_signals() if service else catch_signals()
    try:
        plan = load_sealed_plan(Path(path))
        plan = plan.services[service[0]] if service else plan
        process = find_rank(plan)
        announce_secrets(plan.secrets)
        loosen_umask(Path(plan.store))
        attempt = enter_attempt(RunFolder(plan.run_dir), process)
        stop.file = attempt.path / STOP
    except StepsError as error:
        print(redact(str(error)), file=sys.stderr)
        return error.exit_code
    begun = time.monotonic()
    with (
        keep_lease(attempt) if process.rank == 0 else nullcontext(),
        redacted_output(sys.stdout, sys.stderr),
    ):
        ending = execute(Task(plan, attempt, process, stop))
    seconds = round(time.monotonic() - begun, 3)
    return record_ending(ending, attempt, rank=process.rank, seconds=seconds)


def catch_signals() -> Stop:
    """A flag that TERM, INT and USR1 set; the recipe saves and leaves when it sees it."""
    stop = Stop()

    def request(number: int, frame: object) -> None:
        stop.requested = True

    for number in STOP_SIGNALS:
        signal.signal(number, request)
    return stop


def ignore_signals() -> Stop:
    """A flag that only a file or the end of the step sets: how a service beside a step is stopped.

    Signals to the job are meant for the step, which may have requests under way when it saves.
    """
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    return Stop(parent=int(os.environ[PARENT_VARIABLE]))


def find_rank(plan: Plan) -> ProcessRank:
    """The rank of this process; torchrun's variables count where the plan has torchrun start it.

    Elsewhere they are another job's, and go, before a library for training believes them.
    """
    if plan.has_ranks and plan.beside is None:
        return read_rank(os.environ)
    for name in find_rank_variables(os.environ):
        del os.environ[name]
    return ProcessRank()


def read_rank(environment: Mapping[str, str]) -> ProcessRank:
    """The rank that torchrun gave this process; a lone process is rank 0 of 1."""
    names = (("RANK", 0), ("WORLD_SIZE", 1), ("LOCAL_RANK", 0))
    return ProcessRank(*(int(environment.get(name, default)) for name, default in names))


def enter_attempt(folder: RunFolder, process: ProcessRank) -> Attempt:
    """The attempt that the launcher claimed, or a new one when there was no launcher.

    Raises ``StepFailed`` when it was abandoned meanwhile or another attempt lives.
    """
    number = os.environ.get(ATTEMPT_VARIABLE)
    attempt = Attempt(folder.path / "attempts" / number) if number else folder.claim_attempt()
    if attempt is None or (process.rank == 0 and not attempt.take_ownership()):
        raise StepFailed(f"another attempt of {folder.run_id} is under way; this one gives way")
    if process.rank == 0:
        attempt.update(state=RUNNING, begun=time.time(), processes=process.world_size)
    return attempt


def execute(task: Task) -> JobState:
    """Do the work; how it ended, with the message that a user gets. Nothing is raised."""
    try:
        work(task)
    except Interrupted as error:
        return JobState(CANCELLED, error.exit_code, str(error))
    except StepsError as error:
        task.tell(error)
        return JobState(FAILED, 2 if isinstance(error, UsageError) else 1, str(error))
    except (Exception, SystemExit) as error:
        task.tell_crash()
        return JobState(FAILED, 1, f"{type(error).__name__}: {error}")
    return JobState(COMPLETED, 0)


def record_ending(ending: JobState, attempt: Attempt, *, rank: int, seconds: float) -> int:
    """Record how this process ended, and return its exit code.

    A rank that stopped because another one failed records the failure of the other.
    """
    facts: dict[str, Any] = {"error": redact(ending.reason), "exit_code": ending.exit_code}
    if rank != 0:
        if ending.state == FAILED:
            write_json(attempt.path / f"failure-{rank}.json", facts)
        return ending.exit_code or 0
    failure = attempt.rank_failure if ending.state != COMPLETED else None
    facts = failure or facts
    attempt.close(FAILED if failure else ending.state, seconds=seconds, **facts)
    return int(facts["exit_code"])


def work(task: Task) -> None:
    """Verify the inputs, run the recipe, seal and commit its outputs.

    What an earlier attempt has sealed is only committed.
    """
    plan = task.plan
    if plan.beside is not None:  # a service of a step makes nothing, and starts anew with it
        inputs = open_inputs(plan, task.store)
        check_code(task)
        run_recipe(task, inputs, bind_config(plan, inputs))
        return
    sealed = find_sealed(task.folder)  # before the outputs: another rank turns one into the other
    if task.folder.outputs is not None:
        return  # another attempt completed the run while this one was on its way
    inputs = open_inputs(plan, task.store)
    if sealed is None:
        check_code(task)
        # Again: what an earlier step of the chain has made was not there when this was planned.
        raise_all(UsageError, check_tokens(plan, inputs.get))
    config = bind_config(plan, inputs)
    is_first = task.process.rank == 0
    # Who writes on another machine is not seen from here.
    is_alone = is_first and plan.nodes == 1
    ahead = HashAhead(task.folder.path / "staging") if is_alone else nullcontext()
    with track(task, config, inputs) as tracking, ahead as hashes:
        if sealed is None:
            sealed = run_recipe(task, inputs, config, on_line=tracking.wake)
        if task.attempt.is_abandoned:
            what = "this attempt was declared lost; it leaves the outputs to the next one"
            raise StepFailed(what)
        if is_first:
            tracking.await_begin()  # the records name the runs of the trackers
            for slot, output in commit_outputs(task, sealed, inputs, hashes).items():
                tracking.note_output(slot, output)


def check_code(task: Task) -> None:
    """Raise ``UsageError`` when the sources are not those that the plan was made with.

    Where the job has a copy of the code, the first rank compares all of it, the runtime too.
    """
    plan = task.plan
    if plan.snapshot and task.process.rank == 0 and Path(plan.snapshot.path).is_dir():
        check_snapshot(plan.snapshot)
    if digest_code(plan.entrypoint, plan.config_class) != plan.identity["code"]:
        what = "the step's sources changed after the plan was made"
        raise UsageError(Problem(where=plan.step, what=what, fix="run the same command again"))


def run_recipe(
    task: Task,
    inputs: Mapping[str, Artifact],
    config: StepConfig,
    *,
    on_line: Callable[[], None] | None = None,
) -> Path:
    """Run the step; the folder of what it staged, sealed on the first rank.

    ``on_line`` is called after each line of metrics.
    """
    plan, number = task.plan, task.attempt.number
    ctx = StepContext(
        run_dir=plan.run_dir,
        inputs=inputs,
        outputs=[output.slot for output in plan.outputs],
        run_id=plan.run_id,
        process=task.process,
        attempt=number,
        arguments=plan.arguments,
        stop=task.stop,
        files=plan.files,
        services={
            name: partial(await_service, service, number, stop=task.stop)
            for name, service in plan.services.items()
        },
    )
    if ctx.is_first:
        rewind(ctx)
        ctx.metrics.on_line = on_line
    try:
        load_object(plan.entrypoint)(config, ctx)
    finally:
        ctx.metrics.close()
        if ctx.is_first:
            end_services(plan, number)
    return seal(task, ctx) if ctx.is_first else ctx.staging


def rewind(ctx: StepContext) -> None:
    """Undo what earlier attempts did after their last whole checkpoint."""
    newest = ctx.checkpoints.newest()
    ctx.metrics.rewind(newest.step if newest else 0)
    ctx.checkpoints.discard_staged()
    for staged in ctx.staging.parent.iterdir():
        if staged != ctx.staging:
            remove_tree(staged)
    if newest:
        ctx.say(f"continuing from the checkpoint of step {newest.step}")
