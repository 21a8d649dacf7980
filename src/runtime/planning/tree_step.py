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
from nemotron_style.runtime.errors import ConfigError, Problem
from nemotron_style.runtime.paths import show_path
from nemotron_style.runtime.planning.inputs import ResolvedInput
from nemotron_style.runtime.profiles.model import Profile
from nemotron_style.runtime.run.code import walk_sources
from nemotron_style.runtime.run.plan import Plan
from nemotron_style.runtime.step.compiled import CompiledJob
from nemotron_style.runtime.validation import get_key, show_value

JOB = "nemotron_step.json"
"""The file of the plan that ``steps/nemotron/tree/recipe.py`` reads."""
# What run.env says about the job itself; all else in it is read by the config alone.
ACTED_UPON = ("container_image", "env_vars", "mounts", "nodes", "gpus_per_node")
PROCESSES = ("nproc_per_node", "nprocs_per_node", "ntasks_per_node")
SEEN = "step.py is not copied; the machine or image of the job must have this folder:"
AUTO_MOUNT = re.compile(r"\$\{auto_mount:\s*(?P<url>[^,}]+),?\s*(?P<target>[^}]*)\}")


def compile_tree(
    config: ResolvedConfig, inputs: Mapping[str, ResolvedInput], *, profile: Profile
) -> CompiledJob:
    """The file that tells the job what to run, what it takes, and everything that is missing."""
    manifest = config.manifest
    assert isinstance(manifest, TreeManifest)
    run, env = manifest.runspec.run, read_variables(manifest, profile)
    files = digest_files(manifest)
    job = {
        "step": manifest.id,
        "folder": str(manifest.folder),
        "files": files,
        "launch": run.launch,
        "cmd": run.cmd,
        "workdir": run.workdir,
        "image": manifest.run.image,
        "mounts": list(find_mounts(manifest)),
        "import_root": str(manifest.import_root) if manifest.import_root else None,
        "env": env,
        "slots": list(describe_slots(manifest, inputs)),
    }
    return CompiledJob(
        files={JOB: json.dumps(job, indent=2) + "\n"},
        notes=(
            describe_cover(manifest, files),
            *explain(manifest, config, inputs),
            *([] if is_here(profile) else [f"{SEEN} {manifest.folder}"]),
            *(f"needs {missing}: {fix}" for missing, fix in find_needs(job, profile)),
        ),
        resources=count_resources(manifest, profile),
        problems=tuple(find_problems(manifest, inputs)),
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
    own = manifest.run_env.get("env_vars") or {}
    if not isinstance(own, dict):
        problem = Problem(where=manifest.id, key="run.env.env_vars", what="must be a table")
        raise ConfigError(problem)
    given = {name: str(value) for name, value in own.items() if value is not None}
    variables = {**manifest.runspec.env, **given}
    return {name: value for name, value in variables.items() if name not in profile.env}


def describe_slots(
    manifest: TreeManifest, inputs: Mapping[str, ResolvedInput]
) -> Iterator[dict[str, Any]]:
    """How the job fills the keys of every filled input and every output."""
    filled = [("input", slot) for slot in manifest.slots("input") if slot.name in inputs]
    for side, slot in (*filled, *(("output", slot) for slot in manifest.slots("output"))):
        if slot.keys:
            entry = {"side": side, "slot": slot.name, "keys": slot.keys, "file": slot.file}
            yield {**entry, "mark": mark(side, slot.name, slot.file)}


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
    return {name: _read_count(manifest, name, number) for name, number in counts.items()}


def _read_count(manifest: TreeManifest, name: str, number: Any) -> int:
    """A count, which a variable of the environment gives as text."""
    if isinstance(number, bool) or not re.fullmatch(r"\d+", str(number)):
        what = f"the number of {name} must be a whole number"
        raise ConfigError(Problem(where=manifest.id, key="run.env", what=what, got=repr(number)))
    return int(number)


def describe_cover(manifest: TreeManifest, files: Mapping[str, str]) -> str:
    """A line for the dry run: which code the plan covers, and which not."""
    code = f"code: the {len(files)} files of {show_path(manifest.folder)}"
    imported = ", ".join(find_imports(manifest.script))
    return f"{code}; not covered: the packages that step.py imports ({imported or 'none'})"


def explain(
    manifest: TreeManifest, config: ResolvedConfig, inputs: Mapping[str, ResolvedInput]
) -> Iterator[str]:
    """Lines for the dry run: which inputs have no lineage, and what of ``run.env`` is not ours."""
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
    others = [
        f"run.env.{name}"
        for name, value in manifest.run_env.items()
        if name not in (*ACTED_UPON, *PROCESSES) and value is not None
    ]
    if others:
        yield f"{', '.join(others)}: read by the config alone; the profile says where it runs"


def find_problems(manifest: TreeManifest, inputs: Mapping[str, ResolvedInput]) -> Iterator[Problem]:
    """The slots that the job could not use, each with what to do about it."""
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


def find_mounts(manifest: TreeManifest) -> Iterator[tuple[str, str]]:
    """(what, where) of the config's ``run.env.mounts``; NVIDIA's runner clones repositories."""
    mounts = manifest.run_env.get("mounts") or []
    for entry in mounts if isinstance(mounts, list) else [mounts]:
        clone = AUTO_MOUNT.fullmatch(str(entry))
        source, _, target = str(entry).partition(":")
        yield (clone["url"], clone["target"]) if clone else (source, target or source)


def is_here(plan: Plan | Profile) -> bool:
    """Whether a job runs on this machine and outside any image, so that what it has is known."""
    return plan.executor == "local" and not plan.image


def find_needs(job: Mapping[str, Any], plan: Plan | Profile) -> Iterator[tuple[str, str]]:
    """(what is missing, what to do) of what the job finds neither in its profile nor here."""
    targets = {mount.target for mount in plan.mounts}
    for source, target in job["mounts"]:
        if target not in targets and not (is_here(plan) and Path(target).is_dir()):
            fix = f'bring it there, with mounts = ["FOLDER:{target}"] in a profile with an image'
            yield f"{source} at {target}", fix
    if is_here(plan) and job["workdir"] and not Path(job["workdir"]).is_dir():
        fix = f"use a profile with the image {job['image']}" if job["image"] else "make it"
        yield f"the folder {job['workdir']}", fix
    program = job["cmd"].split()[0] if job["cmd"] else ""
    if is_here(plan) and program and not shutil.which(program):
        yield f"the program {program}", f"install it; the step's command is: {job['cmd']}"


def check_job(plan: Plan) -> Iterator[Problem]:
    """What the job of a tree's step would miss, as far as it is known before it is submitted."""
    if JOB in plan.files:
        for missing, fix in find_needs(json.loads(plan.files[JOB]), plan):
            yield Problem(where=plan.step, what=f"step.py needs {missing}", fix=fix)
