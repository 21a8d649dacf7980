"""A plan out of an order, its config and what fills its inputs."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

from nemotron_style.runtime.bind import Offer
from nemotron_style.runtime.code import digest_code
from nemotron_style.runtime.config import ResolvedConfig
from nemotron_style.runtime.errors import ConfigError, Problem
from nemotron_style.runtime.manifest import Manifest
from nemotron_style.runtime.order import Order, World
from nemotron_style.runtime.plan import (
    Plan,
    PlannedInput,
    PlannedOutput,
    get_key,
    identify,
    name_run,
    put_key,
)
from nemotron_style.runtime.profile import Profile


def draft_plan(
    order: Order,
    manifest: Manifest,
    config: ResolvedConfig,
    offers: Mapping[str, Offer],
    *,
    world: World,
) -> Callable[[int], Plan]:
    """A function that gives the plan of a generation."""
    identity = {
        "step": manifest.id,
        "manifest_version": manifest.version,
        "config": config.semantic,
        "inputs": {slot: offer.source for slot, offer in offers.items()},
        "code": digest_code(manifest.run.entrypoint),
    }
    if order.arguments:
        identity["arguments"] = list(order.arguments)
    base = order.name or f"{manifest.id.replace('/', '-').replace('_', '-')}-{config.name}"
    fixed = {
        "step": manifest.id,
        "config_name": config.name,
        "config": fill_keys(config.values, manifest, offers),
        "inputs": plan_inputs(manifest, offers),
        "outputs": plan_outputs(manifest, base),
        "entrypoint": manifest.run.entrypoint,
        "config_class": manifest.run.config,
        "launch": manifest.run.launch,
        "resources": plan_resources(manifest, config.values, world.profile),
        "store": str(world.store.root),
        "workdir": str(world.workdir),
        "arguments": order.arguments,
        **describe_profile(world.profile, image=manifest.run.image),
    }

    def at_generation(generation: int) -> Plan:
        whole = {**identity, "generation": generation}
        fingerprint = identify(whole)
        run_id = name_run(manifest.id, fingerprint)
        return Plan(**fixed, run_id=run_id, identity=whole, fingerprint=fingerprint)

    return at_generation


def describe_profile(profile: Profile, *, image: str | None) -> dict[str, Any]:
    """The part of a plan that a profile decides."""
    return {
        "image": profile.image or image,
        "env": dict(profile.env),
        "secrets": profile.secrets,
        "setup": profile.setup,
        "profile": profile.name,
        "executor": profile.executor,
    }


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
    names = [base, *(f"{base}.{slot.name}" for slot in manifest.produces[1:])]
    return tuple(
        PlannedOutput(slot=slot.name, kind=slot.kind, name=name, required=slot.required)
        for slot, name in zip(manifest.produces, names, strict=True)
    )


def plan_resources(
    manifest: Manifest, values: Mapping[str, Any], profile: Profile
) -> dict[str, Any]:
    """The manifest's resources as numbers.

    ``processes`` (on each machine) and ``nodes`` may be a number, a config key, or a list of
    config keys whose product is meant: NeMo's ``trainer.devices`` and ``trainer.num_nodes``.
    """
    wanted = dict(manifest.run.resources)
    nodes = count(wanted.pop("nodes", profile.nodes or 1), values, manifest, "nodes")
    processes = wanted.pop("processes", 1)
    many = manifest.run.launch == "torchrun"
    counted = count(processes, values, manifest, "processes") if many else 1
    return {**wanted, "nodes": nodes, "processes": counted}


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
