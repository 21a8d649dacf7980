"""NVIDIA Nemotron's ``env.toml``: its key names, and what they are called here."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from nemotron_style.runtime.errors import Problem
from nemotron_style.runtime.secrets.detect import find_secrets
from nemotron_style.runtime.secrets.names import is_secret_variable

# Tables of an env.toml that are no profiles.
RESERVED = frozenset({"artifacts", "cache", "cli", "wandb"})

OURS = {
    "batch_partition": "detached_partition",
    "container": "image",
    "container_image": "image",
    "container_mounts": "mounts",
    "env_vars": "env",
    "mem": "memory",
    "nproc_per_node": "tasks_per_node",
    "nprocs_per_node": "tasks_per_node",
    "ntasks_per_node": "tasks_per_node",
    "pre_launch_commands": "setup",
    "queue_priority": "priority",
    "remote_job_dir": "workdir",
    "run_partition": "attached_partition",
    "shared_memory_size": "shared_memory_mb",
    "startup_commands": "setup",
}

# Keys that only NeMo-Run reads: they are shown, and nothing here acts upon them.
IGNORED = (
    *("build_gpus_per_node", "build_include_gpus", "build_partition", "build_time"),
    *("can_be_preempted", "host", "identity", "launcher", "nemo_run_dir", "packager"),
    *("packager_include_pattern", "packager_relative_path", "persistent_cache", "pip_extras"),
    *("ray_version", "run_command", "user", "workspace"),
)

READS_VARIABLE = re.compile(r"\$\{\s*oc\.env\s*:\s*['\"]?(\w+)['\"]?\s*(?:,[^}]*)?\}")


def is_dialect(table: Mapping[str, Any]) -> bool:
    """Whether a profile's table has a key that only NVIDIA's dialect has."""
    return any(key in OURS or key in IGNORED or key == "lustre_mount" for key in table)


def translate(table: Mapping[str, Any], where: str) -> tuple[dict[str, Any], list[Problem]]:
    """One profile's table under our key names, and what is wrong with it.

    A key said twice, in two spellings, is a problem when the values differ.
    """
    ours: dict[str, Any] = {}
    problems: list[Problem] = []
    for key, value in table.items():
        name = OURS.get(key, key)
        if key in IGNORED:
            ours["ignored"] = [*ours.get("ignored", ()), key]
        elif name in ours and ours[name] != value:
            what = f"says something else than another spelling of {name!r} in the same table"
            problems.append(Problem(where=where, key=key, what=what))
        else:
            ours[name] = value
    mount = ours.pop("lustre_mount", "")
    if mount:
        ours["mounts"] = [*ours.get("mounts", ()), mount]
    if isinstance(ours.get("env"), dict):
        ours["env"] = dict(ours["env"])
        problems += _move_secrets(ours, where)
    return ours, problems


def _move_secrets(ours: dict[str, Any], where: str) -> list[Problem]:
    """Move ``env`` entries that only pass a secret on (``${oc.env:NAME,''}``) to ``secrets``.

    An entry with the value of a secret becomes a problem.
    """
    problems, names = [], []
    for name in filter(is_secret_variable, [*ours["env"]]):
        value = ours["env"].pop(name)
        passed_on = READS_VARIABLE.fullmatch(value) if isinstance(value, str) else None
        if passed_on and passed_on[1] == name and not [*find_secrets(value)]:
            names.append(name)
            continue
        fix = f"take it out, export {name} where the command is typed, and write "
        fix += f'secrets = ["{name}"]'
        what = "looks like a secret, and values of secrets have no place in a profile"
        problems.append(Problem(where=where, key=f"env.{name}", what=what, fix=fix))
    listed = ours.get("secrets", [])
    if names and isinstance(listed, list):  # what is no list, the schema refuses
        ours["secrets"] = list(dict.fromkeys([*listed, *names]))
    return problems
