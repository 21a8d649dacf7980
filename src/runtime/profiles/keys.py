"""Which executor knows which key of a profile. No other module says so.

A profile may extend one that is written for another executor, or for none: what it inherits and
cannot use is left out. A key that a profile sets itself, and its executor does not know, is a
mistake.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nemotron_style.runtime.errors import Problem

LOCAL, SLURM, LEPTON = "local", "slurm", "lepton"


@dataclass(frozen=True)
class ExecutorKeys:
    """Keys that reach the executor in a plan's ``site``.

    ``own`` mean nothing to another executor; ``shared`` may stand in a profile of any.
    """

    own: tuple[str, ...]
    shared: tuple[str, ...]


EXECUTORS: Mapping[str, ExecutorKeys] = {
    LOCAL: ExecutorKeys(
        own=("engine",),
        shared=("gpus_per_node", "tasks_per_node", "grace_seconds", "secrets_file"),
    ),
    SLURM: ExecutorKeys(
        own=(
            *("account", "partition", "attached_partition", "detached_partition", "qos", "gres"),
            *("constraint", "reservation", "exclusive", "tunnel"),
        ),
        shared=(
            *("nodes", "gpus_per_node", "tasks_per_node", "cpus_per_task", "memory", "time"),
            *("max_requeues", "grace_seconds", "secrets_file"),
        ),
    ),
    LEPTON: ExecutorKeys(
        own=(
            *("resource_shape", "node_group", "node_reservation", "image_pull_secrets"),
            *("priority", "upload", "custom_spec"),
        ),
        shared=("nodes", "gpus_per_node", "tasks_per_node", "shared_memory_mb", "max_requeues"),
    ),
}
OWNER = {key: executor for executor, keys in EXECUTORS.items() for key in keys.own}

Links = Sequence[tuple[str, Mapping[str, Any]]]


def select_site(executor: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a profile that only its executor reads, in a fixed order."""
    keys = EXECUTORS[executor]
    return {key: settings[key] for key in keys.own + keys.shared if settings.get(key) is not None}


def sort_keys(links: Links, known: Sequence[str]) -> tuple[list[str], list[Problem]]:
    """The keys to leave out of a chain of profiles, and a problem for each misplaced key.

    ``links`` are (where, table) of the profile and of what it extends, itself first; ``known``
    are all keys that exist.
    """
    executor = _find_executor(links) or LOCAL
    if executor not in EXECUTORS:
        return [], []  # the schema refuses it
    inherited = [key for _, table in links[1:] for key in table]
    left_out = [key for key in inherited if OWNER.get(key, executor) != executor]
    return left_out, list(_find_misplaced(links, executor, known))


def _find_misplaced(links: Links, executor: str, known: Sequence[str]) -> Iterator[Problem]:
    allowed = ", ".join(name for name in known if OWNER.get(name, executor) == executor)
    for depth, (where, table) in enumerate(links):
        for key in table:
            owner = OWNER.get(key, executor)
            # A parent may be a profile of the owner, or a base that several executors extend.
            inherited = depth > 0 and _find_executor(links[depth:]) in (None, owner)
            if owner != executor and not inherited:
                what = f"belongs to the {owner} executor, and this profile's is {executor}"
                fix = f'take it out, or set executor = "{owner}"'
                yield Problem(where=where, key=key, what=what, allowed=allowed, fix=fix)


def _find_executor(links: Links) -> str | None:
    """The executor that a profile names, or the nearest that it extends."""
    return next((table["executor"] for _, table in links if "executor" in table), None)
