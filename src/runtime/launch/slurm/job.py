"""A plan as a Slurm job: the options of sbatch, and the container that Pyxis opens for it.

Values that a batch script cannot hold are refused here, before anything is written: a control
character or a backslash would end or change the line it stands in.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from nemotron_style.runtime.errors import Problem
from nemotron_style.runtime.run.plan import Plan

GRACE_SECONDS = 120
PLAIN_OPTIONS = ("account", "partition", "qos", "constraint", "reservation", "gres")
# The program that keeps an image, in a reference to it: dockerd://, podman://.
SCHEME = re.compile(r"[a-z]+://")
UNREADABLE = re.compile(r"[^A-Za-z0-9._-]+")


def list_options(plan: Plan) -> Iterator[tuple[str, str | None]]:
    """sbatch's options, in an order that reads well."""
    site = plan.site
    yield "job-name", plan.run_id
    yield from ((key, str(site[key])) for key in PLAIN_OPTIONS if site.get(key))
    yield "nodes", str(plan.nodes)
    yield "ntasks-per-node", "1"
    if site.get("cpus_per_task"):
        yield "cpus-per-task", str(site["cpus_per_task"])
    if site.get("gpus_per_node") and not site.get("gres"):
        yield "gpus-per-node", str(site["gpus_per_node"])
    if site.get("memory"):
        yield "mem", str(site["memory"])
    if site.get("exclusive"):
        yield "exclusive", None
    if site.get("time"):
        yield "time", str(site["time"])
        yield "signal", f"B:USR1@{count_grace(plan)}"
    yield "requeue" if site.get("max_requeues") else "no-requeue", None
    yield "open-mode", "append"
    yield "chdir", str(plan.run_dir)
    folder = str(plan.run_dir).replace("%", "%%")  # Slurm would replace %j and the like
    yield "output", f"{folder}/job-%j.txt"


def count_grace(plan: Plan) -> int:
    """Seconds before the limit at which the workers are warned; never more than half of it."""
    wanted = int(plan.site.get("grace_seconds", GRACE_SECONDS))
    limit = plan.site.get("time")
    return max(1, min(wanted, count_seconds(str(limit)) // 2)) if limit else wanted


def count_seconds(limit: str) -> int:
    """``MM``, ``MM:SS``, ``HH:MM:SS``, and ``D-HH`` with as much of the rest as there is."""
    days, dash, rest = limit.rpartition("-")
    parts = [int(part) for part in rest.split(":")]
    if dash:
        hours, minutes, seconds = [*parts, 0, 0][:3]
    elif len(parts) == 1:
        hours, minutes, seconds = 0, parts[0], 0
    else:
        hours, minutes, seconds = [0, *parts][-3:]
    return ((int(days or 0) * 24 + hours) * 60 + minutes) * 60 + seconds


def name_image_file(plan: Plan) -> str:
    """The squashed file of the plan's image: its own path, or one for all runs of a store."""
    image = str(plan.image)
    if image.startswith("/"):
        return image
    readable = UNREADABLE.sub("-", SCHEME.sub("", image)).strip("-.")[-80:]
    digest = hashlib.sha256(image.encode()).hexdigest()[:8]
    return str(Path(plan.store, "images", f"{readable}-{digest}.sqsh"))


def write_uri(image: str) -> str:
    """A reference as enroot writes it: ``nvcr.io/nvidia/nemo`` is ``docker://nvcr.io#nvidia/nemo``."""
    if SCHEME.match(image):
        return image
    registry, slash, rest = image.partition("/")
    is_host = "." in registry or ":" in registry or registry == "localhost"
    if "#" in image or not slash or not is_host:
        return f"docker://{image}"
    return f"docker://{registry}#{rest}"


def write_mounts(plan: Plan) -> Iterator[str]:
    """Pyxis's ``SOURCE:TARGET[:FLAG+FLAG]``; what the job itself needs is added when missing."""
    for mount in plan.mounts:
        flags = f":{'+'.join(mount.options)}" if mount.options else ""
        yield f"{mount.source}:{mount.target}{flags}"
    covered = [PurePosixPath(mount.target) for mount in plan.mounts if mount.source == mount.target]
    for path in list_needed(plan):
        if not any(PurePosixPath(path).is_relative_to(above) for above in covered):
            covered.append(PurePosixPath(path))
            yield f"{path}:{path}"


def list_needed(plan: Plan) -> list[str]:
    """Folders and files that a worker opens under the names they have outside."""
    needed = [plan.store, plan.workdir]
    needed += [plan.snapshot.path] if plan.snapshot else []
    secrets = plan.site.get("secrets_file")
    return needed + ([str(secrets)] if secrets else [])


def find_unwritable(plan: Plan) -> Iterator[Problem]:
    """Values that would not arrive in the job as they are."""
    values = {
        key: str(plan.site[key]) for key in (*PLAIN_OPTIONS, "memory", "time") if key in plan.site
    }
    values |= {"store": plan.store, "workdir": plan.workdir, "image": plan.image or ""}
    for index, mount in enumerate(plan.mounts):
        values[f"mounts[{index}]"] = f"{mount.source}:{mount.target}"
    for key, value in values.items():
        if "\\" in value or any(unicodedata.category(each) == "Cc" for each in value):
            what = "holds a control character or a backslash, which a batch script cannot"
            yield Problem(where=plan.where, key=key, what=what, got=repr(value))
    if plan.records is not None:
        what = "a Slurm job and this machine must see the same store"
        yield Problem(where=plan.where, key="remote_store", what=what, got=plan.store)


def find_unmountable(plan: Plan) -> Iterator[Problem]:
    """Mounts and images that Pyxis cannot mount."""
    for index, mount in enumerate(plan.mounts):
        key, got = f"mounts[{index}]", f"{mount.source}:{mount.target}"
        if mount.volume:
            yield Problem(where=plan.where, key=key, what="volumes are for Lepton only", got=got)
        elif not (mount.source.startswith("/") and mount.target.startswith("/")):
            yield Problem(where=plan.where, key=key, what="must be absolute paths", got=got)
        elif any(mark in part for mark in ",:" for part in (mount.source, mount.target)):
            what = "holds a comma or a colon, which Pyxis takes for the end of a path"
            yield Problem(where=plan.where, key=key, what=what, got=got)
    if not plan.image:
        return
    if plan.image.startswith(("~", ".")):
        what = "an image is a reference or an absolute path"
        yield Problem(where=plan.where, key="image", what=what, got=plan.image)
    for key, path in zip(("store", "workdir"), list_needed(plan), strict=False):
        if any(mark in path for mark in ",:"):
            what = "holds a comma or a colon and has to be mounted into the image"
            yield Problem(where=plan.where, key=key, what=what, got=path)
