"""From what a recipe staged to artifacts.

Once the recipe has returned, its outputs are *sealed*: forced to the disk, with a file beside
them that says so. A worker that dies after that leaves only commits to do, and the next attempt
does those without running the recipe again.
"""

from __future__ import annotations

import hashlib
import os
import sys
import traceback
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from nemotron_style.runtime.atomic import (
    create_empty,
    read_json,
    remove_tree,
    sync_tree,
    write_json,
)
from nemotron_style.runtime.errors import Problem, StepFailed, StepsError, StoreError, raise_all
from nemotron_style.runtime.run.attempt import Attempt
from nemotron_style.runtime.run.code import describe_code
from nemotron_style.runtime.run.folder import SEAL, RunFolder
from nemotron_style.runtime.run.kept_run import note_outputs
from nemotron_style.runtime.run.plan import Plan
from nemotron_style.runtime.run.state import COMPLETED
from nemotron_style.runtime.secrets.redact import redact_leaves
from nemotron_style.runtime.step.context import ProcessRank, StepContext, Stop
from nemotron_style.runtime.store.record import Artifact, Producer
from nemotron_style.runtime.store.staged.ahead import HashAhead
from nemotron_style.runtime.store.store import Store
from nemotron_style.runtime.worker.environment import describe_environment, describe_hardware


@dataclass(frozen=True)
class Task:
    """The plan that this process executes, and as which of the ranks."""

    plan: Plan
    attempt: Attempt
    process: ProcessRank
    stop: Stop

    @property
    def folder(self) -> RunFolder:
        return RunFolder(self.plan.run_dir)

    @property
    def store(self) -> Store:
        return Store(self.plan.root or self.plan.store, scratch=self.plan.store)

    def tell(self, error: StepsError) -> None:
        """Print an error of a user, unless another process of this machine has said the same."""
        said = hashlib.sha256(str(error).encode()).hexdigest()[:16]
        alone = self.process.world_size == 1
        if alone or create_empty(self.attempt.path / f"said-{self._node}-{said}"):
            print(error, file=sys.stderr, flush=True)

    def tell_crash(self) -> None:
        """Print the traceback at hand, but for what a user's error in another process leads to."""
        if not any(self.attempt.path.glob(f"said-{self._node}-*")):
            traceback.print_exc()
            sys.stderr.flush()

    @property
    def _node(self) -> str:
        return os.environ.get("GROUP_RANK", "0")  # torchrun's number of the machine


def seal(task: Task, ctx: StepContext) -> Path:
    """Declare what was staged final. Raises ``StepFailed`` naming the outputs that are empty."""
    what = "the step wrote nothing for this output"
    missing = [
        Problem(where=task.plan.step, key=output.slot, what=what)
        for output in task.plan.outputs
        if output.required and not any(ctx.output(output.slot).path.iterdir())
    ]
    raise_all(StepFailed, missing)
    sync_tree(ctx.staging)  # before the seal: what it declares final must survive a power cut
    sealed = {
        "figures": ctx.figures,
        "metrics": {**ctx.metrics.last, **ctx.figures},
        "facts": {output.slot: ctx.output(output.slot).facts for output in task.plan.outputs},
    }
    write_json(ctx.staging / SEAL, redact_leaves(sealed) | {"hardware": describe_hardware()})
    return ctx.staging


def find_sealed(folder: RunFolder) -> Path | None:
    """The folder that an earlier attempt sealed and did not finish to commit, or None."""
    return next((path.parent for path in folder.path.glob(f"staging/*/{SEAL}")), None)


def commit_outputs(
    task: Task, folder: Path, inputs: Mapping[str, Artifact], ahead: HashAhead | None = None
) -> Mapping[str, Mapping[str, str]]:
    """Commit every sealed output that is not committed yet, then declare the run complete.

    ``ref``, ``kind`` and ``digest`` of each output come back, by slot. ``ahead`` has hashes of
    files that the recipe had done with earlier.
    """
    # Nothing is continued from them once the outputs are sealed. A file that an output shares with
    # one of them then has one name left, and a commit copies those that have several.
    remove_tree(task.folder.path / "checkpoints")
    try:
        complete = _commit_each(task, folder, inputs, ahead)
        note_outputs(task.plan, task.store, complete)
        write_json(task.folder.path / "outputs.json", complete)
    except StoreError as error:
        fix = "mend that; the same command then commits the outputs, which are sealed, without "
        fix += "computing again"
        raise StepFailed([replace(one, fix=one.fix or fix) for one in error.problems]) from error
    except OSError as error:
        # The recipe is done: whoever reads this must not think that its work is lost.
        what = f"cannot be written: {error.strerror}; the outputs are sealed, not yet committed"
        fix = "mend that (`nemotron-style artifacts gc` removes what ended runs left); "
        fix += "the same command then commits them without computing again"
        where, got = f"store {task.plan.store}", str(error.filename or "")
        raise StepFailed(Problem(where=where, what=what, got=got, fix=fix)) from error
    remove_tree(folder.parent)
    return dict(complete["outputs"])


def _commit_each(
    task: Task, folder: Path, inputs: Mapping[str, Artifact], ahead: HashAhead | None
) -> dict[str, Any]:
    plan, store = task.plan, task.store
    sealed = read_json(folder / SEAL) or {}
    shared = describe_run(plan, sealed)
    committed: dict[str, Any] = {}
    for output in plan.outputs:
        artifact = store.finish_commit(plan.run_id, output.slot)
        staged = folder / output.slot
        if artifact is None and staged.is_dir() and any(staged.iterdir()):
            artifact = store.commit(
                staged,
                name=output.name,
                kind=output.kind,
                producer=describe_producer(task, output.slot),
                inputs=[artifact.edge(slot) for slot, artifact in inputs.items()],
                forbidden=[os.environ[name] for name in plan.secrets if os.environ.get(name)],
                ahead=ahead,
                facts=sealed.get("facts", {}).get(output.slot, {}),
                **shared,
            )
        if artifact:
            entry = {"ref": artifact.ref, "kind": artifact.kind, "digest": artifact.digest}
            committed[output.slot] = entry
    return {"outputs": committed, "figures": sealed.get("figures", {})}


def describe_run(plan: Plan, sealed: Mapping[str, Any]) -> dict[str, Any]:
    """What the records of all outputs of the run have in common."""
    facts = plan.snapshot.facts if plan.snapshot else {}
    return {
        "config": plan.config,
        "code": describe_code(plan.entrypoint, plan.identity["code"]) | facts,
        "environment": describe_environment() | ({"image": plan.image} if plan.image else {}),
        "hardware": sealed.get("hardware", {}),
        "seeds": {key: value for key, value in plan.config.items() if key.endswith("seed")},
        "metrics": sealed.get("metrics", {}),
    }


def describe_producer(task: Task, slot: str) -> Producer:
    """This run as the maker of ``slot``, with every attempt that it took."""
    plan, number = task.plan, task.attempt.number
    earlier = [one.summary for one in task.folder.attempts if one.number < number]
    return Producer(
        run_id=plan.run_id,
        step=plan.step,
        slot=slot,
        config_name=plan.config_name,
        fingerprint=plan.fingerprint,
        attempts=(*earlier, {"number": number, "state": COMPLETED}),
        trackers={name: one["id"] for name, one in task.folder.trackers.items()},
        rerun_of=plan.rerun_of,
    )
