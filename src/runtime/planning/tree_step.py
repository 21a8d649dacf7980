"""What the job of a step in NVIDIA Nemotron's layout is told, and what such a step lacks.

NVIDIA's files say how to start ``step.py``; where its inputs come from and where it writes, what
it needs that no config says, and which of its keys mean nothing here, is found out and shown.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from nemotron_style.runtime.catalog.nemotron_tree import TreeManifest, mark
from nemotron_style.runtime.catalog.runspec import find_imports
from nemotron_style.runtime.config.resolve import ResolvedConfig
from nemotron_style.runtime.errors import Problem
from nemotron_style.runtime.paths import show_path
from nemotron_style.runtime.planning.inputs import ResolvedInput
from nemotron_style.runtime.profiles.model import Profile
from nemotron_style.runtime.run.code import walk_sources
from nemotron_style.runtime.step.compiled import CompiledJob
from nemotron_style.runtime.validation import get_key, show_value

JOB = "nemotron_step.json"
"""The file of the plan that ``steps/nemotron/tree/recipe.py`` reads."""
# What run.env says about the job itself; all else in it is read by the config alone.
ACTED_UPON = ("container_image", "env_vars", "mounts", "nodes", "gpus_per_node")
PROCESSES = ("nproc_per_node", "nprocs_per_node", "ntasks_per_node")
AUTO_MOUNT = re.compile(r"\$\{auto_mount:\s*(?P<url>[^,}]+),?\s*(?P<target>[^}]*)\}")


def compile_tree(
    config: ResolvedConfig, inputs: Mapping[str, ResolvedInput], *, profile: Profile
) -> CompiledJob:
    """The file that tells the job what to run, what it takes, and everything that is missing."""
    manifest = config.manifest
    assert isinstance(manifest, TreeManifest)
    run, env = manifest.runspec.run, read_variables(manifest, profile)
    job = {
        "step": manifest.id,
        "folder": str(manifest.folder),
        "files": digest_files(manifest),
        "launch": run.launch,
        "cmd": run.cmd,
        "workdir": run.workdir,
        "import_root": str(manifest.import_root) if manifest.import_root else None,
        "env": env,
        "slots": dict(describe_slots(manifest, inputs)),
    }
    return CompiledJob(
        files={JOB: json.dumps(job, indent=2) + "\n"},
        notes=tuple(explain(manifest, config, inputs, profile)),
        resources=count_resources(manifest, profile),
        problems=tuple(find_problems(manifest, config, inputs, profile)),
    )


def describe_code(manifest: TreeManifest) -> dict[str, Any]:
    """What of a step's own code and settings belongs to the identity of a run."""
    variables = manifest.run_env.get("env_vars")
    return {"files": digest_files(manifest), "env": variables if variables else {}}


def digest_files(manifest: TreeManifest) -> dict[str, str]:
    """The SHA-256 of every file in the step's folder, by its name in there."""
    files = walk_sources(manifest.folder, "step")
    return {
        name.removeprefix("step/"): hashlib.sha256(path.read_bytes()).hexdigest()
        for name, path in sorted(files)
    }


def read_variables(manifest: TreeManifest, profile: Profile) -> dict[str, str]:
    """The environment of ``step.py``: the runspec's, then the config's; the profile's wins."""
    own = manifest.run_env.get("env_vars")
    own = own if isinstance(own, dict) else {}
    variables = {**manifest.runspec.env, **{name: str(value) for name, value in own.items()}}
    return {name: value for name, value in variables.items() if name not in profile.env}


def describe_slots(
    manifest: TreeManifest, inputs: Mapping[str, ResolvedInput]
) -> Iterator[tuple[str, dict[str, Any]]]:
    """(name, how the job fills its keys) of every filled input and every output with a key."""
    filled = [("input", slot) for slot in manifest.slots("input") if slot.name in inputs]
    for side, slot in (*filled, *(("output", slot) for slot in manifest.slots("output"))):
        if slot.keys:
            entry = {"side": side, "slot": slot.name, "keys": slot.keys, "file": slot.file}
            yield f"{side}:{slot.name}", {**entry, "mark": mark(side, slot.name)}


def count_resources(manifest: TreeManifest, profile: Profile) -> dict[str, int]:
    """Machines, and processes and GPUs on each.

    As NVIDIA's runner has it: the config's ``run.env`` wins over the profile, and that over the
    runspec.
    """
    own, spec, launch = manifest.run_env, manifest.runspec.resources, manifest.run.launch
    counts: dict[str, int] = {}
    gpus = own.get("gpus_per_node", profile.gpus_per_node)
    if gpus is None and isinstance(spec.gpus_per_node, int):
        gpus = spec.gpus_per_node
    nodes = own.get("nodes", profile.nodes) or spec.nodes
    if launch != "python":
        counts["nodes"] = nodes
    if gpus is not None:
        counts["gpus"] = gpus
    if launch == "torchrun":
        named = next((own[name] for name in PROCESSES if own.get(name)), profile.tasks_per_node)
        counts["processes"] = named or gpus or 1
    return {name: int(number) for name, number in counts.items()}


def explain(
    manifest: TreeManifest,
    config: ResolvedConfig,
    inputs: Mapping[str, ResolvedInput],
    profile: Profile,
) -> Iterator[str]:
    """Lines for the dry run: what is covered by the plan, and what is not."""
    code = f"code: the {len(digest_files(manifest))} files of {show_path(manifest.folder)}"
    imported = ", ".join(find_imports(manifest.script))
    yield f"{code}; not covered: the packages that step.py imports ({imported or 'none'})"
    for slot in manifest.slots("input"):
        if slot.name in inputs:
            continue
        if not slot.keys:
            yield f"input {slot.name}: no key takes it; the config alone says what step.py reads"
            continue
        value = get_key(config.values, slot.keys[0])
        if value is not None:
            told = f"{slot.keys[0]}={show_value(value)} stays as it is and has no lineage"
            yield f"input {slot.name}: {told}"
    if cmd := manifest.runspec.run.cmd:
        program = cmd.split()[0]
        missing = profile.executor == "local" and not profile.image and not shutil.which(program)
        yield f"command: {cmd}" + (f"  ({program} is not on this machine)" if missing else "")
    others = [
        f"run.env.{name}"
        for name, value in manifest.run_env.items()
        if name not in (*ACTED_UPON, *PROCESSES) and value is not None
    ]
    if others:
        yield f"{', '.join(others)}: read by the config alone; the profile says where it runs"


def find_problems(
    manifest: TreeManifest,
    config: ResolvedConfig,
    inputs: Mapping[str, ResolvedInput],
    profile: Profile,
) -> Iterator[Problem]:
    """What keeps the step from being run here, each with what to do about it."""
    where = show_path(manifest.path)
    for slot in manifest.slots("output"):
        if not slot.keys:
            what = f"nothing says which key of the config holds the folder of {slot.kind}"
            fix = "add config_key = 'KEY' to its [[produces]]"
            yield Problem(where=where, key=f"produces.{slot.name}", what=what, fix=fix)
    for slot in manifest.slots("input"):
        if slot.name in inputs and not slot.keys:
            what = "nothing says which key of the config holds its path"
            fix = "leave -i out, or add config_key = 'KEY' to its [[consumes]]"
            yield Problem(where=where, key=f"consumes.{slot.name}", what=what, fix=fix)
    yield from _check_mounts(manifest, profile)
    workdir = manifest.runspec.run.workdir
    if workdir and profile.executor == "local" and not profile.image and not Path(workdir).is_dir():
        what = f"step.py runs in {workdir}, which is not on this machine"
        fix = f"use a profile with an image, such as {manifest.run.image}"
        yield Problem(where=manifest.id, what=what, fix=fix)


def _check_mounts(manifest: TreeManifest, profile: Profile) -> Iterator[Problem]:
    """Every mount of ``run.env`` that neither the profile nor this machine has."""
    mounts = manifest.run_env.get("mounts") or []
    targets = {mount.target for mount in profile.mounts}
    for entry in mounts if isinstance(mounts, list) else [mounts]:
        repository = AUTO_MOUNT.fullmatch(str(entry))
        text = repository["target"] if repository else str(entry).partition(":")[2] or str(entry)
        is_here = profile.executor == "local" and not profile.image and Path(text).is_dir()
        if text in targets or is_here:
            continue
        what = f"it wants {repository['url'] if repository else entry} mounted at {text}"
        fix = f'check it out, and add mounts = ["/your/checkout:{text}"] to the profile'
        yield Problem(where=manifest.id, key="run.env.mounts", what=what, fix=fix)


