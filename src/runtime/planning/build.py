"""A plan out of a request, its config and what fills its inputs."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nemotron_style.runtime.catalog.manifest import Manifest
from nemotron_style.runtime.config.resolve import ResolvedConfig
from nemotron_style.runtime.errors import ConfigError, Problem, UsageError
from nemotron_style.runtime.planning.inputs import Offer
from nemotron_style.runtime.planning.request import PlanContext, RunRequest
from nemotron_style.runtime.profiles.keys import select_site
from nemotron_style.runtime.profiles.model import Profile
from nemotron_style.runtime.run.code import digest_code
from nemotron_style.runtime.run.plan import (
    Plan,
    PlannedInput,
    PlannedOutput,
    get_key,
    identify,
    name_run,
    put_key,
)
from nemotron_style.runtime.run.snapshot import plan_snapshot


@dataclass(frozen=True)
class PlannedService:
    """A service that will run beside a step, and what fills its inputs."""

    manifest: Manifest
    config: ResolvedConfig
    offers: Mapping[str, Offer]


def draft_plan(
    request: RunRequest,
    manifest: Manifest,
    config: ResolvedConfig,
    offers: Mapping[str, Offer],
    *,
    services: Mapping[str, PlannedService],
    context: PlanContext,
) -> Callable[[int], Plan]:
    """A function that gives the plan of a generation."""
    identity = describe_work(manifest, config, offers)
    if request.arguments:
        identity["arguments"] = list(request.arguments)
    beside = {name: describe_work(**vars(service)) for name, service in services.items()}
    if services:
        identity["services"] = beside
    base = request.name or f"{manifest.id.replace('/', '-').replace('_', '-')}-{config.name}"
    resources, notes = plan_resources(manifest, config.values, context.profile)
    around = {**place(manifest, context, resources, notes), "workdir": str(context.workdir)}
    fixed = {
        **plan_work(manifest, config, offers),
        **around,
        "inputs": (*plan_inputs(manifest, offers), *plan_their_inputs(services)),
        "outputs": plan_outputs(manifest, base),
        "resources": resources,
        "arguments": request.arguments,
    }

    def at_generation(generation: int) -> Plan:
        whole = {**identity, "generation": generation}
        run_id = name_run(manifest.id, identify(whole))
        plans = {
            name: seal_plan(
                {**plan_work(**vars(service)), **around, "beside": f"{run_id}/services/{name}"},
                beside[name],
            )
            for name, service in services.items()
        }
        return seal_plan({**fixed, "services": plans}, whole)

    return at_generation


def describe_work(
    manifest: Manifest, config: ResolvedConfig, offers: Mapping[str, Offer]
) -> dict[str, Any]:
    """What can change the result of a step: the part of an identity that it brings itself."""
    return {
        "step": manifest.id,
        "manifest_version": manifest.version,
        "config": config.semantic,
        "inputs": {slot: offer.source for slot, offer in offers.items()},
        "code": digest_code(manifest.run.entrypoint),
    }


def plan_work(
    manifest: Manifest, config: ResolvedConfig, offers: Mapping[str, Offer]
) -> dict[str, Any]:
    """The part of a plan that says what is done, as one process that makes nothing."""
    return {
        "step": manifest.id,
        "config_name": config.name,
        "config": fill_keys(config.values, manifest, offers),
        "inputs": plan_inputs(manifest, offers),
        "outputs": (),
        "entrypoint": manifest.run.entrypoint,
        "config_class": manifest.run.config,
        "launch": manifest.run.launch,
        "resources": {},
        "arguments": (),
    }


def seal_plan(parts: Mapping[str, Any], identity: Mapping[str, Any]) -> Plan:
    """A plan under its fingerprint."""
    fingerprint = identify(identity)
    run_id = name_run(parts["step"], fingerprint)
    return Plan(**parts, run_id=run_id, identity=dict(identity), fingerprint=fingerprint)


def plan_their_inputs(services: Mapping[str, PlannedService]) -> Iterator[PlannedInput]:
    """What services consume, as inputs of the step that they run beside."""
    for name, service in services.items():
        for each in plan_inputs(service.manifest, service.offers):
            yield each.model_copy(update={"slot": f"{name}.{each.slot}", "config_key": None})


def place(
    manifest: Manifest, context: PlanContext, resources: Mapping[str, Any], notes: list[str]
) -> dict[str, Any]:
    """The part of a plan that says where and with what; none of it enters the fingerprint."""
    profile = context.profile
    image = choose_image(manifest, profile, notes)
    home = context.store.root
    store = Path(profile.remote_store) if profile.remote_store else home
    away = context.detached or image is not None or profile.executor != "local"
    return {
        "python": profile.python or ("python3" if image else sys.executable),
        "image": image,
        "mounts": tuple(mount.model_dump() for mount in profile.mounts),
        "snapshot": plan_snapshot(manifest.run.entrypoint, store) if away else None,
        "env": dict(profile.env),
        "secrets": profile.secrets,
        "setup": profile.setup,
        "profile": profile.name,
        "executor": profile.executor,
        "detached": context.detached,
        "site": plan_site(context, gpus=resources.get("gpus")),
        "store": str(store),
        "records": str(home) if store != home else None,
        "notes": (*profile.notes, *notes),
    }


def choose_image(manifest: Manifest, profile: Profile, notes: list[str]) -> str | None:
    """The step's image before the profile's; on this machine only where a profile asks for one."""
    own = manifest.run.image
    if profile.executor == "local" and profile.image is None:
        return None
    if own and profile.image and own != profile.image:
        notes.append(f"image: {own} of the step stands before {profile.image} of the profile")
    return own or profile.image


def plan_site(context: PlanContext, *, gpus: int | None = None) -> dict[str, Any]:
    """What only the executor understands, of the profile: what is set, under the profile's names.

    A step that says how many GPUs it uses on each machine takes no more of the profile's; what
    Lepton gives is one shape, whole.

    Raises ``UsageError`` for ``--force-squash`` where no image is ever squashed.
    """
    profile = context.profile
    settings = profile.model_dump(mode="json", exclude_unset=True)
    site = select_site(profile.executor, settings)
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


def fill_keys(
    values: Mapping[str, Any], manifest: Manifest, offers: Mapping[str, Offer]
) -> dict[str, Any]:
    """The config with the identity of each input at the key that is bound to its slot."""
    filled = copy.deepcopy(dict(values))
    for slot in manifest.consumes:
        if slot.config_key and slot.name in offers:
            put_key(filled, slot.config_key, offers[slot.name].source)
    return filled


def plan_inputs(manifest: Manifest, offers: Mapping[str, Offer]) -> tuple[PlannedInput, ...]:
    return tuple(
        PlannedInput(
            slot=slot.name,
            kind=offers[slot.name].kind,
            source=offers[slot.name].source,
            config_key=slot.config_key,
        )
        for slot in manifest.consumes
        if slot.name in offers
    )


def plan_outputs(manifest: Manifest, base: str) -> tuple[PlannedOutput, ...]:
    """The first output is called ``base``, the others ``base.<slot>``."""
    return tuple(
        PlannedOutput(
            slot=slot.name,
            kind=slot.kind,
            name=f"{base}.{slot.name}" if number else base,
            required=slot.required,
        )
        for number, slot in enumerate(manifest.produces)
    )


def plan_resources(
    manifest: Manifest, values: Mapping[str, Any], profile: Profile
) -> tuple[dict[str, Any], list[str]]:
    """The manifest's resources as numbers, and notes on what they override of the profile.

    ``processes`` and ``gpus`` (on each machine) and ``nodes`` may be a number, a config key, or a
    list of config keys whose product is meant: NeMo's ``trainer.devices`` and
    ``trainer.num_nodes``. A step that starts as one process takes one machine.
    """
    wanted = dict(manifest.run.resources)
    notes: list[str] = []
    alone = manifest.run.launch == "python"
    offered = {"nodes": 1 if alone else profile.nodes, "processes": profile.tasks_per_node}
    if manifest.run.launch != "torchrun":
        wanted["processes"] = 1
        offered["processes"] = None
    counted = {}
    for name, offer in offered.items():
        source = wanted.get(name, offer or 1)
        counted[name] = count(source, values, manifest, name)
        if offer not in (None, counted[name]) and not alone:
            key = "tasks_per_node" if name == "processes" else name
            told = f"{key}: {counted[name]}, by {show_source(source)} of the step"
            notes.append(f"{told}, stands before {offer} of the profile")
    if "gpus" in wanted:
        source, offer = wanted["gpus"], profile.gpus_per_node
        counted["gpus"] = 0 if source == 0 else count(source, values, manifest, "gpus")
        if offer is not None and counted["gpus"] < offer and profile.executor != "lepton":
            told = f"gpus_per_node: {counted['gpus']}, by {show_source(source)} of the step"
            notes.append(f"{told}, stands before {offer} of the profile")
    return {**wanted, **counted}, notes


def show_source(source: Any) -> str:
    """Where a count comes from: a number of the manifest, or config keys."""
    if isinstance(source, int):
        return "the manifest"
    return " x ".join(map(str, source)) if isinstance(source, list | tuple) else str(source)


def count(wanted: Any, values: Mapping[str, Any], manifest: Manifest, name: str) -> int:
    """A positive product of numbers and config keys. Raises ``ConfigError`` for anything else."""
    product = 1
    for factor in wanted if isinstance(wanted, list | tuple) else [wanted]:
        value = get_key(values, factor) if isinstance(factor, str) else factor
        if type(value) is not int or value < 1:
            what = f"the manifest counts {name} with it, so it must be a positive integer"
            key = str(factor)
            raise ConfigError(Problem(where=manifest.id, key=key, what=what, got=repr(value)))
        product *= value
    return product
