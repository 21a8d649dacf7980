"""How many machines, processes and GPUs a run takes, and who said so."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nemotron_style.runtime.catalog.manifest import Manifest
from nemotron_style.runtime.errors import ConfigError, Problem
from nemotron_style.runtime.planning.notes import describe_count, note_idle_gpus
from nemotron_style.runtime.profiles.model import Profile
from nemotron_style.runtime.validation import get_key

# The resources that a manifest may count, and the profile's key for each.
COUNTED = {"nodes": "nodes", "processes": "tasks_per_node", "gpus": "gpus_per_node"}


def plan_resources(
    manifest: Manifest,
    values: Mapping[str, Any],
    profile: Profile,
    *,
    compiled: Mapping[str, int],
) -> tuple[dict[str, Any], list[str]]:
    """The manifest's resources as numbers; notes on those that replace a profile's value, or idle.

    ``processes`` and ``gpus`` (on each machine) and ``nodes`` may be a number, a config key, or a
    list of config keys whose product is meant, as NeMo has ``trainer.devices`` and
    ``trainer.num_nodes``. A step that starts as one process runs on one machine. What was
    ``compiled`` replaces both.
    """
    launch, resources = manifest.run.launch, {**manifest.run.resources, **compiled}
    if launch != "torchrun":
        resources["processes"] = 1
    offered = {
        "nodes": None if launch == "python" else profile.nodes,
        "processes": profile.tasks_per_node if launch == "torchrun" else None,
        "gpus": None if profile.executor == "lepton" else profile.gpus_per_node,
    }
    notes: list[str] = []
    for name, key in COUNTED.items():
        offer, source = offered[name], resources.get(name)
        if source is None:
            resources |= {} if name == "gpus" else {name: offer or 1}
            continue
        number = 0 if name == "gpus" and source == 0 else count(source, values, manifest, name)
        resources[name] = number
        # A wish for more GPUs than there are changes nothing: plan_site takes the smaller number.
        if offer is not None and (number < offer or (number > offer and name != "gpus")):
            asked = f"{describe_count(source)} of the step"
            who = "what was compiled" if name in compiled else asked
            notes.append(f"{key}: {number} ({who}) instead of the profile's {offer}")
    notes += note_idle_gpus(manifest.run, resources, profile, offered=offered["gpus"])
    return resources, notes


def count(source: Any, values: Mapping[str, Any], manifest: Manifest, name: str) -> int:
    """The product of numbers and config keys. Raises ``ConfigError`` unless all are positive."""
    product = 1
    for factor in source if isinstance(source, list | tuple) else [source]:
        value = get_key(values, factor) if isinstance(factor, str) else factor
        if type(value) is not int or value < 1:
            what = f"the manifest counts {name} with it, so it must be a positive integer"
            key = str(factor)
            raise ConfigError(Problem(where=manifest.id, key=key, what=what, got=repr(value)))
        product *= value
    return product
