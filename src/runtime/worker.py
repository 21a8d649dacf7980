"""The inside of a run: ``python -m nemotron_style.runtime.worker <run dir>/plan.json``.

Under torchrun every rank runs this module; the first one alone writes records. When the recipe
has returned, what it staged is *sealed*: from then on a killed worker leaves only commits to do,
and the next attempt does just those.
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
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from nemotron_style.runtime.artifact import Artifact, Producer
from nemotron_style.runtime.code import describe_code, digest_code
from nemotron_style.runtime.config import validate
from nemotron_style.runtime.context import Seat, StepContext, Stop
from nemotron_style.runtime.errors import (
    ArtifactError,
    ConfigError,
    Interrupted,
    ManifestError,
    Problem,
    StepFailed,
    StepsError,
    UsageError,
    raise_all,
)
from nemotron_style.runtime.jsonfile import read_json, remove_tree, sync_tree, write_json
from nemotron_style.runtime.machine import describe_environment, describe_hardware
from nemotron_style.runtime.plan import Plan, PlannedInput, load_plan, put_key
from nemotron_style.runtime.run import Attempt, RunFolder
from nemotron_style.runtime.schema import read_refusal
from nemotron_style.runtime.store import Store

ATTEMPT_VARIABLE = "NEMOTRON_STYLE_ATTEMPT"
SEAL = "sealed.json"
EXTRAS = "install it; most steps need: pip install 'nemotron-style[train]'"


@dataclass(frozen=True)
class Ending:
    """How an attempt ended; ``error`` is the message a user gets."""

    state: str
    exit_code: int
    error: str = ""


@dataclass(frozen=True)
class Task:
    """A plan that this process works on, and where."""

    plan: Plan
    attempt: Attempt
    seat: Seat
    stop: Stop

    @property
    def folder(self) -> RunFolder:
        return RunFolder(self.plan.run_dir)

    @property
    def store(self) -> Store:
        return Store(self.plan.store)


def main(arguments: Sequence[str]) -> int:
    """Carry out one attempt; the exit code is 0, 1 (failed), 2 (unusable) or 130 (stopped)."""
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    stop = listen()
    seat = read_seat(os.environ)
    try:
        plan = load_plan(Path(arguments[0]))
        attempt = enter_attempt(RunFolder(plan.run_dir), seat)
    except StepsError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    begun = time.monotonic()
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
    if known is None or (seat.rank == 0 and not known.take_up()):
        raise StepFailed(f"another attempt of {folder.run_id} is under way; this one gives way")
    if seat.rank == 0:
        known.update(state="running", begun=time.time(), processes=seat.world_size)
    return known


def carry_out(task: Task) -> Ending:
    """Do the work and name the way it ended; nothing is raised."""
    try:
        work(task)
    except Interrupted as error:
        return Ending("stopped", error.exit_code, str(error))
    except StepsError as error:
        print(error, file=sys.stderr, flush=True)
        return Ending("failed", 2 if isinstance(error, UsageError) else 1, str(error))
    except (Exception, SystemExit) as error:
        traceback.print_exc()
        sys.stderr.flush()
        return Ending("failed", 1, f"{type(error).__name__}: {error}")
    return Ending("completed", 0)


def tell(ending: Ending, attempt: Attempt, *, seat: Seat, seconds: float) -> int:
    """Write down how it ended. A rank that stopped because another one failed says so."""
    facts: dict[str, Any] = {"error": ending.error, "exit_code": ending.exit_code}
    if seat.rank != 0:
        if ending.state == "failed":
            write_json(attempt.path / f"failure-{seat.rank}.json", facts)
        return ending.exit_code
    failure = attempt.rank_failure if ending.state != "completed" else None
    state = "failed" if failure else ending.state
    facts = failure or facts
    attempt.close(state, seconds=seconds, **facts)
    return int(facts["exit_code"])


def work(task: Task) -> None:
    """Verify, run the recipe, seal, commit. With a sealed earlier attempt only the last."""
    plan = task.plan
    if task.folder.outputs is not None:
        return  # another attempt completed the run while this one was on its way
    inputs = open_inputs(plan, task.store)
    sealed = find_sealed(task.folder)
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
    config = parse_config_of(plan, inputs)
    ctx = StepContext(
        run_dir=plan.run_dir,
        inputs=inputs,
        outputs=[output.slot for output in plan.outputs],
        run_id=plan.run_id,
        seat=task.seat,
        attempt=task.attempt.number,
        arguments=plan.arguments,
        stop=task.stop,
    )
    if ctx.is_first:
        rewind(ctx)
    try:
        load_object(plan.entrypoint)(config, ctx)
    finally:
        ctx.metrics.close()
    return seal(task, ctx) if ctx.is_first else ctx.staging


def parse_config_of(plan: Plan, inputs: Mapping[str, Artifact]) -> Any:
    """The plan's config, with the paths of the inputs at the keys that are bound to them.

    Raises ``ConfigError`` when the schema refuses it.
    """
    values = copy.deepcopy(plan.config)
    for planned in plan.inputs:
        if planned.config_key:
            put_key(values, planned.config_key, str(inputs[planned.slot].path))
    schema: Any = load_object(plan.config_class)
    try:
        return validate(schema, values)
    except ValidationError as error:
        problems = read_refusal(error, schema, values, where=lambda _: plan.step)
        raise ConfigError(problems) from None


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


def seal(task: Task, ctx: StepContext) -> Path:
    """Declare what was staged final. Raises ``StepFailed`` naming the outputs that are empty."""
    what = "the step wrote nothing for this output"
    missing = [
        Problem(where=task.plan.step, key=output.slot, what=what)
        for output in task.plan.outputs
        if output.required and not any(ctx.output(output.slot).path.iterdir())
    ]
    raise_all(StepFailed, missing)
    sync_tree(ctx.staging)
    facts = {output.slot: ctx.output(output.slot).facts for output in task.plan.outputs}
    figures = {**ctx.metrics.last, **ctx.figures}
    told = {"figures": ctx.figures, "metrics": figures, "facts": facts}
    write_json(ctx.staging / SEAL, told | {"hardware": describe_hardware()})
    return ctx.staging


def find_sealed(folder: RunFolder) -> Path | None:
    """What an earlier attempt sealed and did not commit to the end."""
    return next((path.parent for path in folder.path.glob(f"staging/*/{SEAL}")), None)


def commit_outputs(task: Task, sealed: Path, inputs: Mapping[str, Artifact]) -> None:
    """Commit every sealed output that is not committed yet, then declare the run complete."""
    plan, store = task.plan, task.store
    told = read_json(sealed / SEAL) or {}
    evidence = describe_run(task, told)
    committed: dict[str, Any] = {}
    for output in plan.outputs:
        artifact = store.settle(plan.run_id, output.slot)
        staged = sealed / output.slot
        if artifact is None and staged.is_dir() and any(staged.iterdir()):
            artifact = store.commit(
                staged,
                name=output.name,
                kind=output.kind,
                producer=describe_producer(task, output.slot),
                inputs=[artifact.edge(slot) for slot, artifact in inputs.items()],
                forbidden=[os.environ[name] for name in plan.secrets if os.environ.get(name)],
                facts=told.get("facts", {}).get(output.slot, {}),
                **evidence,
            )
        if artifact:
            told_of = {"ref": artifact.ref, "kind": artifact.kind, "digest": artifact.digest}
            committed[output.slot] = told_of
    complete = {"outputs": committed, "figures": told.get("figures", {})}
    write_json(task.folder.path / "outputs.json", complete)
    remove_tree(sealed.parent)
    remove_tree(task.folder.path / "checkpoints")  # nothing will be continued from them


def describe_run(task: Task, told: Mapping[str, Any]) -> dict[str, Any]:
    """What all outputs of the run have in common, for their records."""
    plan = task.plan
    seeds = {key: value for key, value in plan.config.items() if key.endswith("seed")}
    return {
        "config": plan.config,
        "code": describe_code(plan.entrypoint, plan.identity["code"]),
        "environment": describe_environment() | ({"image": plan.image} if plan.image else {}),
        "hardware": told.get("hardware", {}),
        "seeds": seeds,
        "metrics": told.get("metrics", {}),
    }


def describe_producer(task: Task, slot: str) -> Producer:
    """This run as the maker of ``slot``, with every attempt that it took."""
    plan = task.plan
    earlier = [one.summary for one in task.folder.attempts if one.number < task.attempt.number]
    this = {"number": task.attempt.number, "state": "completed"}
    return Producer(
        run_id=plan.run_id,
        step=plan.step,
        slot=slot,
        config_name=plan.config_name,
        fingerprint=plan.fingerprint,
        attempts=(*earlier, this),
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
