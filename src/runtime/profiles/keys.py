"""Which executor knows which key of a profile. No other module says so.

A profile may extend one that is written for another executor, or for none: what it inherits and
cannot use is left out. A key that a profile sets itself, and its executor does not honour, is a
mistake: a limit that nobody keeps is worse than none. In NVIDIA's dialect, whose files are shared
with other tools, it is only named as a key without effect.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from nemotron_style.runtime.errors import Problem, ProfileError, raise_all

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
        shared=("nodes", "gpus_per_node", "tasks_per_node", "grace_seconds", "secrets_file"),
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
# The executors that honour a key; every executor honours a key that is not here.
USERS = {
    key: tuple(name for name, each in EXECUTORS.items() if key in each.own + each.shared)
    for keys in EXECUTORS.values()
    for key in keys.own + keys.shared
}
# Values that ask for nothing.
NOTHING: Mapping[str, Any] = {"max_requeues": 0, "exclusive": False}
SAVED = "leave it out; the next same command goes on from the last checkpoint"
# What to do instead of a key that some executors honour and this one does not.
INSTEAD: Mapping[str, Mapping[str, str]] = {
    LOCAL: {
        "time": "take it out: a job of this machine has no limit of time; `runs cancel` ends it",
        "memory": "take it out: a job of this machine has all of its memory",
        "cpus_per_task": 'take it out; env = { OMP_NUM_THREADS = "8" } sets the threads',
        "max_requeues": SAVED,
        "shared_memory_mb": "take it out: a job of this machine has all of its shared memory",
    },
    SLURM: {"shared_memory_mb": "take it out: a job of Slurm has all shared memory of its nodes"},
    LEPTON: {
        "time": "take it out: a job of Lepton has no limit of time; `runs cancel` ends it",
        "memory": "take it out: resource_shape says how much memory there is",
        "cpus_per_task": "take it out: resource_shape says how many there are",
        "grace_seconds": "take it out: Lepton itself decides how long a pod may take to stop",
        "secrets_file": "take it out: the workspace keeps the values of secrets",
    },
}

Links = Sequence[tuple[str, Mapping[str, Any]]]


def select_site(executor: str, settings: Mapping[str, Any], *, where: str) -> dict[str, Any]:
    """The settings of a profile that only its executor reads, in a fixed order.

    Raises ``ProfileError`` for limits and the like that only other executors honour.
    """
    shared = {key: value for key, value in settings.items() if key not in OWNER}
    raise_all(ProfileError, [*_find_unusable(shared, executor, where=where)])
    keys = EXECUTORS[executor]
    return {key: settings[key] for key in keys.own + keys.shared if settings.get(key) is not None}


def sort_keys(
    links: Links, known: Sequence[str], *, dialect: Sequence[bool] = ()
) -> tuple[list[str], list[Problem]]:
    """The keys to leave out of a chain of profiles, and a problem for each misplaced key.

    ``links`` are (where, table) of the profile and of what it extends, itself first; ``known``
    are all keys that exist; ``dialect`` says which tables are written in NVIDIA's dialect.
    """
    executor = _find_executor(links) or LOCAL
    if executor not in EXECUTORS:
        return [], []  # the schema refuses it
    left_out, problems = [], []
    allowed = ", ".join(key for key in known if executor in USERS.get(key, EXECUTORS))
    for depth, (where, table) in enumerate(links):
        # A parent may be a profile of one that honours the key, or a base of several executors.
        stated = _find_executor(links[depth:])
        for problem in _find_unusable(table, executor, where=where):
            inherited = depth > 0 and stated in (None, *USERS[problem.key])
            foreign = problem.key not in OWNER and depth < len(dialect) and dialect[depth]
            if inherited or foreign:
                left_out.append(problem.key)
            else:
                problems.append(replace(problem, allowed=allowed))
    return left_out, problems


def _find_unusable(table: Mapping[str, Any], executor: str, *, where: str) -> Iterator[Problem]:
    """Each key of a table that ``executor`` does not honour, although others do."""
    for key, value in table.items():
        users = USERS.get(key, (executor,))
        if executor in users or value is None or value == NOTHING.get(key, USERS):
            continue
        got = repr(value)
        if key in OWNER:
            what = f"belongs to the {OWNER[key]} executor, and this profile's is {executor}"
            fix = f'take it out, or set executor = "{OWNER[key]}"'
        else:
            what = (
                f"is honoured by {' and '.join(users)}, and this profile's executor is {executor}"
            )
            fix = INSTEAD[executor][key]
        yield Problem(where=where, key=key, what=what, got=got, fix=fix)


def _find_executor(links: Links) -> str | None:
    """The executor that a profile names, or the nearest that it extends."""
    return next((table["executor"] for _, table in links if "executor" in table), None)
