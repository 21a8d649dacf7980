"""The plan of a step, from its manifest, its resolved config and what fills its inputs."""

from __future__ import annotations

import copy
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nemotron_style.runtime.catalog.manifest import Manifest, Run
from nemotron_style.runtime.catalog.nemotron_tree import TreeManifest
from nemotron_style.runtime.config.resolve import ResolvedConfig
from nemotron_style.runtime.errors import Problem, UsageError
from nemotron_style.runtime.planning.compiler import choose_image, compile_job
from nemotron_style.runtime.planning.inputs import MISSING, UNREAD, ResolvedInput
from nemotron_style.runtime.planning.notes import note_unused
from nemotron_style.runtime.planning.request import PlanContext, RunRequest
from nemotron_style.runtime.planning.resources import plan_resources
from nemotron_style.runtime.planning.tree_step import describe_code
from nemotron_style.runtime.profiles.keys import select_site
from nemotron_style.runtime.run.code import digest_code
from nemotron_style.runtime.run.plan import (
    Plan,
    PlannedInput,
    PlannedOutput,
    identify,
    name_run,
)
from nemotron_style.runtime.run.snapshot import plan_snapshot
from nemotron_style.runtime.store.roots.location import SCRATCH_VARIABLE, check_root
from nemotron_style.runtime.validation import put_key


@dataclass(frozen=True)
class ResolvedStep:
    """A step, or a service that runs beside one, with its config and what fills its inputs."""

    manifest: Manifest
    config: ResolvedConfig
    inputs: Mapping[str, ResolvedInput]

    @property
    def identity(self) -> dict[str, Any]:
        """Everything of this step that can change its result.

        A manifest lies outside the package: which object it runs, and what that makes, are said
        here, and are no part of the code.
        """
        run = self.manifest.run
        own = describe_code(self.manifest) if isinstance(self.manifest, TreeManifest) else None
        return ({"tree": own} if own else {}) | {
            "step": self.manifest.id,
            "manifest_version": self.manifest.version,
            "entrypoint": run.entrypoint,
            "config_class": run.config,
            "outputs": {slot.name: slot.kind for slot in self.manifest.produces},
            "config": self.config.semantic,
            "inputs": {slot: one.source for slot, one in self.inputs.items()},
            "code": digest_code(run.entrypoint, run.config),
        }

    @property
    def planned_inputs(self) -> tuple[PlannedInput, ...]:
        """The filled slots, in the order of the manifest."""
        pairs = ((slot, self.inputs.get(slot.name)) for slot in self.manifest.consumes)
        return tuple(
            PlannedInput(
                slot=slot.name,
                kind=one.kind,
                source=one.source,
                config_key=slot.config_key,
                same_tokens_as=slot.same_tokens_as,
            )
            for slot, one in pairs
            if one
        )


@dataclass(frozen=True)
class PlanDraft:
    """A plan that lacks only its generation; ``services`` are (fields, identity) by name.

    ``problems`` are what the compiler of the step refuses.
    """

    fields: Mapping[str, Any]
    identity: Mapping[str, Any]
    services: Mapping[str, tuple[Mapping[str, Any], Mapping[str, Any]]]
    problems: Sequence[Problem] = ()

    def seal(self, generation: int) -> Plan:
        """The plan of a generation, under its fingerprint."""
        identity = {**self.identity, "generation": generation}
        # A service is found below the run that it belongs to, so its plan names that run.
        run_id = name_run(self.fields["step"], identify(identity))
        services = {
            name: seal_plan({**fields, "beside": f"{run_id}/services/{name}"}, own_identity)
            for name, (fields, own_identity) in self.services.items()
        }
        return seal_plan({**self.fields, "services": services}, identity)


def seal_plan(fields: Mapping[str, Any], identity: Mapping[str, Any]) -> Plan:
    """The plan of an identity, named and sealed by its fingerprint."""
    fingerprint = identify(identity)
    run_id = name_run(fields["step"], fingerprint)
    return Plan(**fields, run_id=run_id, identity=dict(identity), fingerprint=fingerprint)


def draft_plan(
    request: RunRequest,
    step: ResolvedStep,
    *,
    services: Mapping[str, ResolvedStep],
    context: PlanContext,
) -> PlanDraft:
    """Everything about a run except which generation it is."""
    manifest = step.manifest
    identity = step.identity
    if request.arguments:
        identity["arguments"] = list(request.arguments)
    beside = {name: service.identity for name, service in services.items()}
    if services:
        identity["services"] = beside
    values, profile = step.config.values, context.profile
    notes: list[str] = []
    image = choose_image(manifest.run, values, profile, notes)
    job = compile_job(step.config, step.inputs, profile=profile, image=image, store=context.store)
    if job.identity:
        identity["compiled"] = dict(job.identity)
    resources, counted = plan_resources(manifest, values, profile, compiled=job.resources)
    beside_keys = (f"{name}.{key}" for name, one in services.items() for key in one.config.unused)
    unused = note_unused([*step.config.unused, *beside_keys])
    notes = [*counted, *notes, *unused, *job.notes]
    placement = plan_placement(manifest.run, context, resources=resources, image=image, notes=notes)
    base = request.name or f"{manifest.id.replace('/', '-').replace('_', '-')}-{step.config.name}"
    # The step waits for the inputs of its services too; they have no key in its own config.
    service_inputs = [
        planned.model_copy(
            update={"slot": f"{name}.{planned.slot}", "config_key": None, "same_tokens_as": None}
        )
        for name, service in services.items()
        for planned in service.planned_inputs
    ]
    own_fields = {
        "inputs": (*step.planned_inputs, *service_inputs),
        "outputs": plan_outputs(manifest, base),
        "resources": resources,
        "arguments": request.arguments,
        "files": dict(job.files),
    }
    return PlanDraft(
        fields={**plan_work(step), **placement, **own_fields},
        identity=identity,
        services={
            name: ({**plan_work(service), **placement}, beside[name])
            for name, service in services.items()
        },
        problems=job.problems,
    )


def plan_work(step: ResolvedStep) -> dict[str, Any]:
    """The fields of a plan that say what is done, as one process without outputs."""
    manifest = step.manifest
    values = copy.deepcopy(step.config.values)
    for planned in step.planned_inputs:
        # A slot that waits for its content has its path there already, or nothing.
        if planned.config_key and not planned.source.startswith((MISSING, UNREAD)):
            put_key(values, planned.config_key, planned.source)
    return {
        "step": manifest.id,
        "config_name": step.config.name,
        "config": values,
        "inputs": step.planned_inputs,
        "outputs": (),
        "entrypoint": manifest.run.entrypoint,
        "config_class": manifest.run.config,
        "launch": manifest.run.launch,
        "resources": {},
        "arguments": (),
    }


def plan_outputs(manifest: Manifest, base: str) -> tuple[PlannedOutput, ...]:
    """The artifacts to be made: the first is called ``base``, the others ``base.<slot>``."""
    names = [f"{base}.{slot.name}" if at else base for at, slot in enumerate(manifest.produces)]
    return tuple(
        PlannedOutput(slot=slot.name, kind=slot.kind, name=name, required=slot.required)
        for name, slot in zip(names, manifest.produces, strict=True)
    )


def plan_placement(
    run: Run,
    context: PlanContext,
    *,
    resources: Mapping[str, Any],
    image: str | None,
    notes: list[str],
) -> dict[str, Any]:
    """The fields of a plan that say where it runs and with what; none enters the fingerprint."""
    profile = context.profile
    if image is None and any(mount.source != mount.target for mount in profile.mounts):
        notes.append("mounts: without effect, since there is no image to mount them into")
    home = context.store.local
    if context.store.url:
        notes += check_scratch(context)
    remote = profile.remote_store
    store = Path(check_root(remote, where=f"profile {profile.name}")) if remote else home
    # A job that starts later, or elsewhere, must not see edits made to the sources meanwhile.
    needs_snapshot = context.detached or image is not None or profile.executor != "local"
    return {
        "python": profile.python or ("python3" if image else sys.executable),
        "image": image,
        "mounts": tuple(mount.model_dump() for mount in profile.mounts),
        "snapshot": plan_snapshot(store, run.entrypoint, run.config) if needs_snapshot else None,
        "env": dict(profile.env),
        "secrets": profile.secrets,
        "setup": profile.setup,
        "profile": profile.name,
        "executor": profile.executor,
        "detached": context.detached,
        "site": plan_site(context, gpus=resources.get("gpus")),
        "store": str(store),
        "root": context.store.url,
        "records": str(home) if store != home else None,
        "notes": (*profile.notes, *notes),
        "workdir": str(context.workdir),
    }


def check_scratch(context: PlanContext) -> Iterator[str]:
    """Notes on a job whose store is in a bucket; the folder of its run must be where it looks.

    Raises ``UsageError`` for a cluster without such a folder.
    """
    profile, where = context.profile, f"profile {context.profile.name}"
    is_elsewhere = profile.executor != "local" or profile.image is not None
    if profile.executor == "slurm" and not (profile.scratch or os.environ.get(SCRATCH_VARIABLE)):
        what = f"the store is {context.store.url}, and the folders of runs must be on a disk that "
        what += "the nodes see too"
        fix = f'name a folder there: scratch = "/shared/..." (or ${SCRATCH_VARIABLE})'
        raise UsageError(Problem(where=where, key="scratch", what=what, fix=fix))
    given = {*profile.env, *profile.secrets}
    if is_elsewhere and not any(n.startswith("AWS_") for n in given):
        yield "store: the profile names no AWS_... variable, so the job has to have its own access"


def plan_site(context: PlanContext, *, gpus: int | None = None) -> dict[str, Any]:
    """The settings that only the executor understands, under the profile's names.

    A step that says how many GPUs it uses on each machine takes no more of the profile's (a shape
    of Lepton cannot be divided). Raises ``UsageError`` for ``--force-squash`` outside Slurm.
    """
    profile = context.profile
    settings = profile.model_dump(mode="json", exclude_unset=True)
    site = select_site(profile.executor, settings, where=f"profile {profile.name}")
    if gpus is not None and "gpus_per_node" in site and profile.executor != "lepton":
        site["gpus_per_node"] = min(gpus, site["gpus_per_node"])
    if profile.executor == "slurm":
        attached, detached = site.pop("attached_partition", ""), site.pop("detached_partition", "")
        own = detached if context.detached else attached
        site |= {"partition": own} if own else {}
    if context.force_squash and profile.executor != "slurm":
        what = "only a Slurm profile has a squashed image"
        raise UsageError(Problem(where="--force-squash", what=what, got=profile.executor))
    return site | ({"force_squash": True} if context.force_squash else {})
