"""What is worth knowing about a plan that can be carried out: keys and GPUs without effect."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from nemotron_style.runtime.catalog.manifest import Run
from nemotron_style.runtime.profiles.model import Profile


def note_unused(keys: Sequence[str]) -> Iterator[str]:
    """One note with all ``keys`` that a config sets and that no code reads; none for no key."""
    if keys:
        yield f"without effect: {', '.join(keys)} (known from other systems, read by no code here)"


def note_idle_gpus(
    run: Run, resources: Mapping[str, Any], profile: Profile, *, offered: int | None
) -> Iterator[str]:
    """A note where each machine has more GPUs for the step than torchrun starts processes there.

    A process drives one GPU. ``offered`` is the profile's number, None where it says nothing. A
    step that is one process of its own may use several GPUs, so nothing is said of it.
    """
    tasks, source = f"tasks_per_node of profile {profile.name}", run.resources.get("processes")
    counted = resources.get("gpus"), describe_count(run.resources.get("gpus"))
    limits = [counted, (offered, f"gpus_per_node of profile {profile.name}")]
    known = [(number, key) for number, key in limits if number]
    if run.launch != "torchrun" or not known:
        return
    gpus, key = min(known)
    processes = resources["processes"]
    if gpus > processes:
        words = "process drives one" if processes == 1 else "processes drive one each"
        fix = (
            f"set {describe_count(source) if source else tasks} to {gpus}, or {key} to {processes}"
        )
        yield f"{gpus - processes} of {gpus} GPUs a machine stay idle: {processes} {words}; {fix}"


def describe_count(source: Any) -> str:
    """Where a count comes from: config keys, or the manifest for a plain number."""
    if isinstance(source, list | tuple):
        return " x ".join(map(str, source))
    return source if isinstance(source, str) else "the manifest"
