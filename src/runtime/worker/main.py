"""The inside of a run: ``python -m nemotron_style.runtime.worker <run dir>/plan.json``.

Under torchrun every rank runs this module; the first one alone writes records. With the name of a
service of the plan, it is that service which is run, beside the step.
"""

from __future__ import annotations

import copy
import importlib
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from nemotron_style.runtime.atomic import remove_tree, write_json
from nemotron_style.runtime.config.model import parse_config
from nemotron_style.runtime.errors import (
    ArtifactError,
    Interrupted,
    ManifestError,
    Problem,
    StepFailed,
    StepsError,
    UsageError,
    raise_all,
)
from nemotron_style.runtime.run.attempt import ATTEMPT_VARIABLE, PARENT_VARIABLE, STOP, Attempt
from nemotron_style.runtime.run.code import digest_code
from nemotron_style.runtime.run.folder import RunFolder
from nemotron_style.runtime.run.plan import Plan, PlannedInput, load_plan
from nemotron_style.runtime.run.state import CANCELLED, COMPLETED, FAILED, RUNNING
from nemotron_style.runtime.secrets.detect import announce_secrets
from nemotron_style.runtime.secrets.redact import redact, redacted_output
from nemotron_style.runtime.step.context import Seat, StepContext, Stop
from nemotron_style.runtime.store.record import Artifact
from nemotron_style.runtime.store.store import Store
from nemotron_style.runtime.validation import put_key
from nemotron_style.runtime.worker.outputs import Task, commit_outputs, find_sealed, seal
from nemotron_style.runtime.worker.services import await_service, end_services

EXTRAS = "install it; most steps need: pip install 'nemotron-style[train]'"


@dataclass(frozen=True)
class Ending:
    """How an attempt ended; ``error`` is the message a user gets."""

    state: str
    exit_code: int
    error: str = ""


def main(arguments: Sequence[str]) -> int:
    """Carry out one attempt; the exit code is 0, 1 (failed), 2 (unusable) or 130 (stopped)."""
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    path, *service = arguments
    stop = listen_beside() if service else listen()
    seat = Seat() if service else read_seat(os.environ)
    try:
        plan = load_plan(Path(path))
        plan = plan.services[service[0]] if service else plan
        announce_secrets(plan.secrets)
        attempt = enter_attempt(RunFolder(plan.run_dir), seat)
        stop.file = attempt.path / STOP
    except StepsError as error:
        print(redact(str(error)), file=sys.stderr)
        return error.exit_code
    begun = time.monotonic()
    with redacted_output(sys.stdout, sys.stderr):
        ending = carry_out(Task(plan, attempt, seat, stop))
    seconds = round(time.monotonic() - begun, 3)
    return tell(ending, attempt, seat=seat, seconds=seconds)


def listen() -> Stop:
    """A flag that TERM, INT and USR1 set; the recipe saves and leaves when it sees it."""
    stop = Stop()

    def request(number: int, frame: object) -> None:
        stop.requested = True

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, request)
    return stop


def listen_beside() -> Stop:
    """The same for a service beside a step, which must outlast the step.

    Signals to the job are meant for the step, which may have requests under way when it saves.
    """
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    return Stop(parent=int(os.environ[PARENT_VARIABLE]))


def read_seat(environment: Mapping[str, str]) -> Seat:
    """The rank that torchrun gave this process; a lone process is rank 0 of 1."""
    names = (("RANK", 0), ("WORLD_SIZE", 1), ("LOCAL_RANK", 0))
    return Seat(*(int(environment.get(name, default)) for name, default in names))


def enter_attempt(folder: RunFolder, seat: Seat) -> Attempt:
    """The attempt that the launcher claimed, or a new one when there was no launcher.

    Raises ``StepFailed`` when it was given up meanwhile or another attempt lives.
    """
    number = os.environ.get(ATTEMPT_VARIABLE)
    known = Attempt(folder.path / "attempts" / number) if number else folder.claim_attempt()
    if known is None or (seat.rank == 0 and not known.take_ownership()):
        raise StepFailed(f"another attempt of {folder.run_id} is under way; this one gives way")
    if seat.rank == 0:
        known.update(state=RUNNING, begun=time.time(), processes=seat.world_size)
    return known


def carry_out(task: Task) -> Ending:
    """Do the work and name the way it ended; nothing is raised."""
    try:
        work(task)
    except Interrupted as error:
        return Ending(CANCELLED, error.exit_code, str(error))
    except StepsError as error:
        print(error, file=sys.stderr, flush=True)
        return Ending(FAILED, 2 if isinstance(error, UsageError) else 1, str(error))
    except (Exception, SystemExit) as error:
        traceback.print_exc()
        sys.stderr.flush()
        return Ending(FAILED, 1, f"{type(error).__name__}: {error}")
    return Ending(COMPLETED, 0)


def tell(ending: Ending, attempt: Attempt, *, seat: Seat, seconds: float) -> int:
    """Write down how it ended. A rank that stopped because another one failed says so."""
    facts: dict[str, Any] = {"error": redact(ending.error), "exit_code": ending.exit_code}
    if seat.rank != 0:
        if ending.state == FAILED:
            write_json(attempt.path / f"failure-{seat.rank}.json", facts)
        return ending.exit_code
    failure = attempt.rank_failure if ending.state != COMPLETED else None
    state = FAILED if failure else ending.state
    facts = failure or facts
    attempt.close(state, seconds=seconds, **facts)
    return int(facts["exit_code"])


def work(task: Task) -> None:
    """Verify, run the recipe, seal, commit. With a sealed earlier attempt only the last."""
    plan = task.plan
    if plan.beside is not None:  # a service of a step makes nothing, and starts anew with it
        run_recipe(task, open_inputs(plan, task.store))
        return
    sealed = find_sealed(task.folder)  # before the outputs: another rank turns one into the other
    if task.folder.outputs is not None:
        return  # another attempt completed the run while this one was on its way
    inputs = open_inputs(plan, task.store)
    if sealed is None:
        check_code(plan)
        sealed = run_recipe(task, inputs)
    if task.seat.rank == 0:
        commit_outputs(task, sealed, inputs)


def open_inputs(plan: Plan, store: Store) -> dict[str, Artifact]:
    """The planned inputs by slot. Raises ``ArtifactError`` with all that are gone or changed."""
    found: dict[str, Artifact] = {}
    problems: list[Problem] = []
    for planned in plan.inputs:
        artifact = find_input(planned, store)
        if artifact is None:
            what, fix = f"{planned.source} is not in the store", "run the same command again"
            problems.append(Problem(where=plan.step, key=planned.slot, what=what, fix=fix))
            continue
        problems += store.verify(artifact, deep=False)
        found[planned.slot] = artifact
    raise_all(ArtifactError, problems)
    return found


def find_input(planned: PlannedInput, store: Store) -> Artifact | None:
    """The artifact that a planned input stands for; of several copies one of the planned kind."""
    if planned.producer:
        return store.output_of(*planned.producer)
    copies = store.by_digest(planned.source)
    return next((copy for copy in copies if copy.kind == planned.kind), next(iter(copies), None))


def check_code(plan: Plan) -> None:
    """Raise ``UsageError`` when the sources are not those that the plan was made with."""
    if digest_code(plan.entrypoint) != plan.identity["code"]:
        what = "the step's sources changed after the plan was made"
        raise UsageError(Problem(where=plan.step, what=what, fix="run the same command again"))


def run_recipe(task: Task, inputs: Mapping[str, Artifact]) -> Path:
    """Run the step; what it staged, sealed on the first rank."""
    plan = task.plan
    config = bind_config(plan, inputs)
    ctx = StepContext(
        run_dir=plan.run_dir,
        inputs=inputs,
        outputs=[output.slot for output in plan.outputs],
        run_id=plan.run_id,
        seat=task.seat,
        attempt=task.attempt.number,
        arguments=plan.arguments,
        stop=task.stop,
        services={
            name: partial(await_service, service, task.attempt.number, stop=task.stop)
            for name, service in plan.services.items()
        },
    )
    if ctx.is_first:
        rewind(ctx)
    try:
        load_object(plan.entrypoint)(config, ctx)
    finally:
        ctx.metrics.close()
        if ctx.is_first:
            end_services(plan, task.attempt.number)
    return seal(task, ctx) if ctx.is_first else ctx.staging


def bind_config(plan: Plan, inputs: Mapping[str, Artifact]) -> Any:
    """The plan's config, with the paths of the inputs at the keys that are bound to them.

    Raises ``ConfigError`` when the schema refuses it.
    """
    values = copy.deepcopy(plan.config)
    for planned in plan.inputs:
        if planned.config_key:
            put_key(values, planned.config_key, str(inputs[planned.slot].path))
    schema: Any = load_object(plan.config_class)
    return parse_config(schema, values, where=lambda _: plan.step)


def rewind(ctx: StepContext) -> None:
    """Take back what earlier attempts did after their last whole checkpoint."""
    newest = ctx.checkpoints.newest()
    ctx.metrics.rewind(newest.step if newest else 0)
    ctx.checkpoints.discard_staged()
    for leftover in ctx.staging.parent.iterdir():
        if leftover != ctx.staging:
            remove_tree(leftover)
    if newest:
        ctx.say(f"continuing from the checkpoint of step {newest.step}")


def load_object(name: str) -> Callable[..., Any]:
    """``package.module:name``.

    Raises ``ManifestError`` when the module has no such name, and ``UsageError`` when a package
    that it needs is not installed.
    """
    module_name, _, attribute = name.partition(":")
    try:
        found = getattr(importlib.import_module(module_name), attribute, None)
    except ModuleNotFoundError as error:
        what, fix = f"the step needs the package {error.name!r}", EXTRAS
        raise UsageError(Problem(where=name, what=what, fix=fix)) from None
    if not callable(found):
        what = f"module {module_name!r} has no {attribute!r}"
        raise ManifestError(Problem(key="run", what=what, got=name))
    return found  # type: ignore[no-any-return]
