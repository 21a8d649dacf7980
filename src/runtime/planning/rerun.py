"""A complete run repeated from its sealed plan, as a run of its own.

A run is named by the fingerprint of its identity, so a repetition needs an identity that no
request has: that of the first run, with ``rerun_of`` (its id) and ``rerun`` (which repetition this
is). It therefore neither overwrites the first run, nor is used instead of it. What it makes is
called ``<name>.rerun``, so that ``<name>:latest`` stays what it is. Config, code and inputs are the
first run's; a profile may be another.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from nemotron_style.runtime.catalog.catalog import Catalog
from nemotron_style.runtime.catalog.manifest import Manifest
from nemotron_style.runtime.catalog.nemotron_tree import TreeManifest
from nemotron_style.runtime.errors import Problem, StepsError, UsageError, raise_all
from nemotron_style.runtime.planning.build import plan_placement
from nemotron_style.runtime.planning.compiler import choose_image
from nemotron_style.runtime.planning.inputs import describe_artifact
from nemotron_style.runtime.planning.pipeline import PlannedRun
from nemotron_style.runtime.planning.request import PlanContext, open_context
from nemotron_style.runtime.planning.reuse import Decision, decide_unfinished
from nemotron_style.runtime.planning.tree_step import describe_code as describe_tree
from nemotron_style.runtime.profiles.model import Profile
from nemotron_style.runtime.run.code import describe_code, digest_code
from nemotron_style.runtime.run.folder import RunFolder
from nemotron_style.runtime.run.kept_run import read_outputs
from nemotron_style.runtime.run.plan import RERUN_OF, Plan, Snapshot, identify, name_run
from nemotron_style.runtime.run.snapshot import check_snapshot, plan_snapshot
from nemotron_style.runtime.run.state import COMPLETED
from nemotron_style.runtime.store.record import Artifact, Edge, Record
from nemotron_style.runtime.store.ref import LONGEST_NAME
from nemotron_style.runtime.store.store import Store
from nemotron_style.runtime.worker.environment import describe_environment, describe_hardware
from nemotron_style.runtime.worker.inputs import find_input

SUFFIX = ".rerun"


@dataclass(frozen=True)
class Rerun:
    """A repetition that is ready to start.

    ``outputs`` are the records of what the first run made, by slot; ``surroundings`` say in what
    this machine differs from the one that the first run had, as far as it is known before.
    """

    run: PlannedRun
    outputs: Mapping[str, Record]
    surroundings: tuple[str, ...]


def plan_rerun(
    first: RunFolder, *, store: Store, catalog: Catalog, profile: Profile | None = None
) -> Rerun:
    """The repetition of a complete run, on the first one's profile or on another.

    One that was begun and not finished is gone on with. Raises ``UsageError`` with everything that
    would make it another run than the first: inputs that are gone or changed, other code.
    """
    plan = first.plan
    manifest = catalog.find(plan.step)
    outputs = find_outputs(first, plan, store)
    inputs, problems = find_inputs(plan, outputs, store)
    placed = move_plan(plan, store)
    if profile is not None:
        context = replace(open_context(profile, catalog), store=store)
        placed = place_plan(placed, manifest, context)
    problems += check_placement(plan, placed, profile)
    problems += check_code(placed, manifest, outputs)
    raise_all(UsageError, problems)
    if placed.snapshot and find_copy(placed) is None:  # what is installed does the same
        copy = plan_snapshot(Path(placed.store), placed.entrypoint, placed.config_class)
        placed = update_plan(placed, {"snapshot": copy})
    sealed, decision = choose_repetition(placed, first.run_id, store)
    resolved = {slot: describe_artifact(artifact) for slot, artifact in inputs.items()}
    run = PlannedRun(manifest, sealed, decision, resolved)
    return Rerun(run, outputs, tuple(compare_surroundings(sealed, outputs)))


def find_outputs(first: RunFolder, plan: Plan, store: Store) -> dict[str, Record]:
    """The records of what a run made, by slot; those of removed artifacts are kept by the store.

    Raises ``UsageError`` for a service, for a run that is not complete, and for lost records.
    """
    where = first.run_id
    if plan.is_service:
        what = f"{plan.step} is a service: it makes no artifact that a repetition could be held to"
        fix = "repeat the run of a step that used it, which starts the service beside it"
        raise UsageError(Problem(where=where, what=what, fix=fix))
    complete = first.outputs
    if complete is None and first.state == COMPLETED:
        what = f"what it made is in {plan.store}, which this machine does not see"
        fix = "repeat it where that folder is, with NEMOTRON_STYLE_HOME set to it"
        raise UsageError(Problem(where=where, what=what, fix=fix))
    if complete is None:
        what = f"it is {first.state} and has made nothing that a repetition could be held to"
        fix = "only a run that is COMPLETED can be repeated; the same command goes on with this one"
        raise UsageError(Problem(where=where, what=what, fix=fix))
    records: dict[str, Record] = {}
    problems = []
    for slot, output in complete["outputs"].items():
        known = store.find(output["ref"]) or store.tombstone(output["ref"])
        if known is None:
            what, fix = "the record of what it made is gone", "restore it from a copy of the store"
            problems.append(Problem(where=where, key=slot, what=what, got=output["ref"], fix=fix))
        else:
            records[slot] = known.record
    raise_all(UsageError, problems)
    return records


def find_inputs(
    plan: Plan, outputs: Mapping[str, Record], store: Store
) -> tuple[dict[str, Artifact], list[Problem]]:
    """The very artifacts that the first run read, by slot, and what is wrong with the others.

    Every byte of them is read: what was changed behind the store's back would make it seem that
    the step cannot be repeated.
    """
    read: dict[str, Edge] = {
        edge.slot: edge for record in outputs.values() for edge in record.inputs
    }
    inputs: dict[str, Artifact] = {}
    problems: list[Problem] = []
    for planned in plan.inputs:
        edge, artifact = read.get(planned.slot), find_input(planned, store)
        ref = edge.ref if edge else planned.source
        if artifact is None:
            what = store.explain_missing(planned.source)
        elif edge and artifact.digest != edge.digest:
            what = f"is {artifact.digest} now, and the run read {edge.digest}"
        else:
            inputs[planned.slot] = artifact
            problems += store.verify(artifact, deep=True)
            continue
        fix = "a run can be repeated with the very inputs it had, and with no others"
        problems.append(Problem(where=plan.step, key=planned.slot, what=what, got=ref, fix=fix))
    return inputs, problems


def move_plan(plan: Plan, store: Store) -> Plan:
    """The plan in the store as it is found today, attached to the command that repeats it."""
    root = str(store.local)
    moved: dict[str, Any] = {"detached": False, "root": store.url}
    if plan.records is not None:
        moved["records"] = root
    elif plan.store != root:
        moved["store"] = root
        if plan.snapshot:
            copy = Path(root, "code", Path(plan.snapshot.path).name)
            moved["snapshot"] = plan.snapshot.model_copy(update={"path": str(copy)})
    return update_plan(plan, moved)


def place_plan(plan: Plan, manifest: Manifest, context: PlanContext) -> Plan:
    """The plan on another profile; what it computes, and with which code, stays."""
    own = {"entrypoint": plan.entrypoint, "config": plan.config_class}
    run, notes = manifest.run.model_copy(update=own), list[str]()
    image = choose_image(run, plan.config, context.profile, notes)
    placement = plan_placement(run, context, resources=plan.resources, image=image, notes=notes)
    placed = update_plan(plan, placement)
    has_same_folder = (placed.store, placed.records) == (plan.store, plan.records)
    if find_copy(plan) and placed.is_seen and has_same_folder:
        return update_plan(placed, {"snapshot": plan.snapshot})
    return placed


def find_copy(plan: Plan) -> Snapshot | None:
    """The copy of the code that the job has, under its path on this machine, if it is seen."""
    if plan.snapshot is None or not plan.is_seen:
        return None
    path = plan.snapshot.path
    if plan.records:
        path = str(Path(plan.records, Path(path).relative_to(plan.store)))
    return plan.snapshot.model_copy(update={"path": path}) if Path(path).is_dir() else None


def update_plan(plan: Plan, fields: Mapping[str, Any]) -> Plan:
    """The plan, and those of its services, with other values of these fields."""
    body = plan.model_dump()
    services = {name: {**service, **fields} for name, service in body["services"].items()}
    return Plan.model_validate({**body, **fields, "services": services})


def check_placement(plan: Plan, placed: Plan, profile: Profile | None) -> Iterator[Problem]:
    """Why the job cannot be done in the place that was chosen for it."""
    if profile is None and not Path(plan.workdir).is_dir():
        what, fix = "the folder that it ran in is gone", "make it, or name a --profile"
        yield Problem(where=plan.run_id, what=what, got=plan.workdir, fix=fix)
    if profile is not None and plan.files:
        what = f"its job was compiled for the profile {plan.profile} and runs on no other"
        yield Problem(where="--profile", what=what, got=profile.name, fix="leave --profile out")
    if not placed.is_seen and placed.root is None:
        what = "the store of the job is not seen from here, so nothing could be compared"
        yield Problem(where=placed.where, key="remote_store", what=what, got=placed.store)


def check_code(plan: Plan, manifest: Manifest, outputs: Mapping[str, Record]) -> Iterator[Problem]:
    """Why the job would not run the code of the first run: its copy, else what is installed."""
    if copy := find_copy(plan):
        try:
            check_snapshot(copy)
        except StepsError as error:
            yield from error.problems
    else:
        try:
            now = digest_code(plan.entrypoint, plan.config_class)
        except StepsError as error:
            yield from error.problems
            return
        if now != plan.identity["code"]:
            yield explain_changed_code(plan, now, next(iter(outputs.values())).code)
    tree = describe_tree(manifest) if isinstance(manifest, TreeManifest) else None
    if tree != plan.identity.get("tree"):
        what, fix = "the files of the step are others than those of the run", "restore them"
        yield Problem(where=plan.step, what=what, got=str(manifest.folder), fix=fix)


def explain_changed_code(plan: Plan, now: str, code: Mapping[str, Any]) -> Problem:
    """What is said where the code of the step is another one, and no copy was kept."""
    what = "the code of the step was changed since, and this run kept no copy of it (those of "
    what += "detached runs, containers and clusters do)"
    fix = "install what it ran with: " + ", ".join(
        f"{name} {code[key]}"
        for key, name in (("version", "nemotron-style"), ("commit", "commit"))
        if key in code
    )
    fix += ", with changes that were not committed" if "difference" in code else ""
    was = plan.identity["code"][:12]
    return Problem(where=plan.step, key="code", what=what, got=now[:12], allowed=was, fix=fix)


def choose_repetition(plan: Plan, first: str, store: Store) -> tuple[Plan, Decision]:
    """The plan of the first repetition that is not complete, and what to do about it."""
    number = 1
    while True:
        repeated = seal_repetition(plan, first, number)
        folder = RunFolder(repeated.record_dir)
        is_complete = read_outputs(folder, store) is not None
        if folder.exists and not is_complete:
            return repeated, decide_unfinished(folder, repeated)
        # Where only the artifacts are left of one, the same run would get them for its own.
        made = (store.output_of(repeated.run_id, output.slot) for output in repeated.outputs)
        if not is_complete and not any(made):
            return repeated, Decision("run", f"repetition {number} of {first}")
        number += 1


def seal_repetition(plan: Plan, first: str, number: int) -> Plan:
    """The plan as the repetition of a run, under an identity and names that no request has."""
    identity = {**plan.identity, RERUN_OF: first, "rerun": number}
    fingerprint = identify(identity)
    run_id = name_run(plan.step, fingerprint)
    outputs = tuple(
        output.model_copy(update={"name": name_repeated(output.name)}) for output in plan.outputs
    )
    services = {
        name: service.model_copy(update={"beside": f"{run_id}/services/{name}"})
        for name, service in plan.services.items()
    }
    sealed = {"identity": identity, "fingerprint": fingerprint, "run_id": run_id}
    return plan.model_copy(update={**sealed, "outputs": outputs, "services": services})


def name_repeated(name: str) -> str:
    """What an artifact is called that repeats another."""
    return name.removesuffix(SUFFIX)[: LONGEST_NAME - len(SUFFIX)] + SUFFIX


def compare_surroundings(plan: Plan, outputs: Mapping[str, Record]) -> Iterator[str]:
    """In what the job will find other software or hardware than the first run had; a line each."""
    first = next(iter(outputs.values()))
    here = plan.executor == "local" and plan.image is None and plan.python == sys.executable
    if not here:
        yield f"what the job finds on {plan.profile} is known when it has run"
        return
    hardware = describe_hardware()
    now = {
        "environment": describe_environment(),
        "hardware": {key: hardware[key] for key in ("cores", "platform")},
        "code": {} if plan.snapshot else describe_code(plan.entrypoint, plan.identity["code"]),
    }
    for field, values in now.items():
        before = getattr(first, field)
        keys = before.keys() | values.keys() if field == "environment" else values.keys()
        for key in sorted(keys):
            if before.get(key) != values.get(key):
                was, is_now = (side.get(key, "(absent)") for side in (before, values))
                yield f"{field}.{key}: {was} -> {is_now}"
