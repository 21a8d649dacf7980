"""Whether a planned run has to run, and why.

``run``: nothing usable exists. ``reuse``: the run is complete and its outputs are there, with the
sizes and times of their commit (`artifacts verify` reads every byte). ``resume``:
an attempt began and ended early. ``attach``: an attempt is under way. A service that was stopped
left nothing to reuse and is started again.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from nemotron_style.runtime.atomic import read_json
from nemotron_style.runtime.errors import Problem, UsageError
from nemotron_style.runtime.launch.status import read_status
from nemotron_style.runtime.run.attempt import LOCAL
from nemotron_style.runtime.run.folder import RunFolder
from nemotron_style.runtime.run.identity_difference import describe_difference
from nemotron_style.runtime.run.kept_run import read_outputs
from nemotron_style.runtime.run.listing import find_recent_runs
from nemotron_style.runtime.run.plan import Plan
from nemotron_style.runtime.run.state import CANCELLED, COMPLETED, FAILED, LOST, TIMEOUT
from nemotron_style.runtime.store.store import Store

RUNS_COMPARED = 10
"""The newest runs of a step among which the most similar one is looked for."""


@dataclass(frozen=True)
class Decision:
    """What to do about a run, and why; ``details`` are the keys, inputs or files behind it."""

    action: str
    reason: str
    details: tuple[str, ...] = ()


def decide(
    seal: Callable[[int], Plan], *, store: Store, fresh: bool = False
) -> tuple[Plan, Decision]:
    """The plan of the generation to use, and what to do about it.

    ``seal`` gives the plan of a generation. One that cannot be reused is never written over: the
    next generation is used instead.
    """
    generation, plan = 0, seal(0)
    while _exists(following := seal(generation + 1), store):
        generation, plan = generation + 1, following
    made = read_outputs(folder := RunFolder(plan.record_dir), store)
    if not folder.exists and made is None:
        return plan, explain_new_run(plan, store)
    if fresh:
        reason = f"--fresh: generation {generation + 1}, whatever was made before"
        return following, Decision("run", reason)
    if plan.is_service and read_status(folder).state == COMPLETED:
        return following, Decision("run", f"the service was stopped; generation {generation + 1}")
    if made is None:
        return plan, decide_unfinished(folder, plan)
    problems = verify_outputs(plan.run_id, made, store)
    if not problems:
        reason = f"same fingerprint as {plan.run_id}, outputs unchanged by size and time"
        return plan, Decision("reuse", reason)
    verb = "were removed" if has_removed_output(made, store) else "no longer verify"
    reason = f"the outputs of {plan.run_id} {verb}; generation {generation + 1}"
    return following, Decision("run", reason, tuple(str(problem) for problem in problems))


def _exists(plan: Plan, store: Store) -> bool:
    folder = RunFolder(plan.record_dir)
    return folder.exists or read_outputs(folder, store) is not None


def decide_unfinished(folder: RunFolder, plan: Plan) -> Decision:
    """What to do about a run that has a plan and no outputs yet."""
    last = folder.last_attempt
    if last is None:
        return Decision("run", "planned before and never started")
    status = read_status(folder)
    if not status.is_final:
        place = last.executor if last.executor != LOCAL else last.remote_host
        where = f" on {place}" if place else ""
        return Decision("attach", f"attempt {last.number} is under way{where}: {status.state}")
    # A store that this machine does not see keeps the outputs; its records end with the state.
    if status.state == COMPLETED and plan.records is not None and not plan.root:
        return Decision("reuse", f"completed on {last.executor}; what it made is in {plan.store}")
    step = find_newest_step(folder)
    start = f"continues from the checkpoint of step {step}" if step else "starts over"
    how = {
        CANCELLED: "was stopped",
        COMPLETED: "did not finish its commits",
        FAILED: "failed",
        LOST: "was lost",
        TIMEOUT: "ran out of time",
    }[status.state]
    details = tuple(f"attempt {last.number}: {line}" for line in status.reason.splitlines()[:3])
    return Decision("resume", f"attempt {last.number} {how}; {start}", details)


def find_newest_step(folder: RunFolder) -> int:
    """The step of a run's newest checkpoint; 0 where it has none."""
    names = [path.name for path in folder.path.glob("checkpoints/step-*")]
    return max((int(re.sub(r"\D", "", name)) for name in names), default=0)


def check_names(plan: Plan, decision: Decision, store: Store) -> None:
    """Raise ``UsageError`` when artifacts that were asked for by name have, or will get, another.

    What is committed keeps its name, and a live attempt commits under those it was started with.
    """
    folder = RunFolder(plan.record_dir)
    for output in plan.outputs:
        made = store.output_of(plan.run_id, output.slot)
        name = made.record.name if made else output.name
        if not made and decision.action in ("attach", "reuse") and folder.exists:
            name = next(one.name for one in folder.plan.outputs if one.slot == output.slot)
        if name == output.name:
            continue
        what = f"{plan.run_id} makes it already, under the name {name}"
        fix = f"use {name}, or make it again with --fresh"
        if made:
            what = f"{plan.run_id} has made it already: {made.ref}"
            copy = f"artifacts adopt {made.path} --kind {made.kind} --name {output.name}"
            fix = f"use {made.ref}, copy it (nemotron-style {copy}), or make it again with --fresh"
        raise UsageError(Problem(where="--name", what=what, got=output.name, fix=fix))


def verify_outputs(run_id: str, made: Mapping[str, Any], store: Store) -> list[Problem]:
    """Every change to the committed outputs of a complete run since their commit."""
    problems: list[Problem] = []
    for slot, output in made.get("outputs", {}).items():
        artifact = store.output_of(run_id, slot)
        removed = store.tombstone(output["ref"])
        if removed and artifact is None:
            problems.append(Problem(where=output["ref"], what=removed.describe()))
        elif artifact is None:
            problems.append(Problem(where=output["ref"], what="is gone"))
        else:
            problems += store.verify(artifact, deep=False)
    return problems


def has_removed_output(made: Mapping[str, Any], store: Store) -> bool:
    """Whether somebody removed what a complete run made."""
    return any(store.tombstone(output["ref"]) for output in made.get("outputs", {}).values())


def explain_new_run(plan: Plan, store: Store) -> Decision:
    """The decision to run, with what differs from the most similar earlier run of the step.

    Where that one ended early, it is said that its checkpoint is not gone on from: it belongs to
    what that run was.
    """
    compared: list[tuple[list[str], RunFolder]] = []
    for run in find_recent_runs(store.local, plan.step, RUNS_COMPARED):
        # As it is written: to hold a whole plan to its schema and its seal takes ten times as long.
        identity = (read_json(run.path / "plan.json") or {}).get("identity")
        with contextlib.suppress(ValueError, AttributeError):  # what is no plan is passed over
            differences = describe_difference(identity or run.plan.identity, plan.identity)
            if differences:  # else another command planned this very run a moment ago
                compared.append((differences, run))
    closest = sorted(compared, key=lambda pair: len(pair[0]))
    whole = (pair for pair in closest if _is_readable(pair[1]))
    differences, earlier = next(whole, ([], None))
    if earlier is None:
        return Decision("run", "first run of this step")
    run_id = earlier.run_id
    more = f" (and {len(differences) - 1} more)" if len(differences) > 1 else ""
    reason = f"differs from {run_id}: {differences[0]}{more}"
    step = find_newest_step(earlier) if earlier.outputs is None else 0
    if step:
        reason += f"; it starts over, and only the command of {run_id} goes on from its step {step}"
    return Decision("run", reason, tuple(differences))


def _is_readable(run: RunFolder) -> bool:
    """Whether a run's plan is the one that was sealed."""
    try:
        return bool(run.plan)
    except UsageError:
        return False
