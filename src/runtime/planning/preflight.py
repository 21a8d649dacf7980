"""What stands in the way of a run, found before anything is submitted.

These are the questions that every executor has in common; a launcher adds its own
(``Launcher.check``). Everything is looked at and nothing is changed.
"""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from nemotron_style.runtime.errors import Problem
from nemotron_style.runtime.planning.inputs import Adoption
from nemotron_style.runtime.run.plan import Plan
from nemotron_style.runtime.store.store import Store

FREE_FLOOR = 256 << 20  # bytes: records, logs and a small checkpoint
MODEL_PARALLEL = (
    "tensor_model_parallel_size",
    "pipeline_model_parallel_size",
    "context_parallel_size",
)
PORT = "MASTER_PORT"


def check_plan(plan: Plan, *, adoptions: Sequence[Adoption] = ()) -> list[Problem]:
    """Everything that would make the run fail, as far as it can be known here and now.

    ``adoptions`` are contents that are brought into the store before the run begins.
    """
    return [
        *check_inputs(plan, adoptions),
        *check_disk(plan, adoptions),
        *check_processes(plan),
        *check_nodes(plan),
        *check_parallel(plan),
        *check_port(plan),
    ]


def check_inputs(plan: Plan, adoptions: Sequence[Adoption]) -> Iterator[Problem]:
    """What was brought in from outside is in the store, whole, or can be read where it lies."""
    store = Store(plan.records or plan.store)
    incoming = {adoption.digest: adoption for adoption in adoptions}
    for planned in plan.inputs:
        if planned.producer:
            continue  # what a run makes is there when that run is over
        copies = store.by_digest(planned.source)
        if not copies and planned.source not in incoming:
            what, fix = f"{planned.source} is not in the store", "give the input again, by -i"
            yield Problem(where=plan.step, key=planned.slot, what=what, fix=fix)
        elif not copies:
            yield from _check_readable(incoming[planned.source], plan, planned.slot)
        elif found := store.verify(copies[0], deep=False):
            yield from found


def _check_readable(adoption: Adoption, plan: Plan, slot: str) -> Iterator[Problem]:
    for path in _local_files(adoption):
        if not os.access(path, os.R_OK):
            yield Problem(where=plan.step, key=slot, what="cannot be read", got=str(path))


def check_disk(plan: Plan, adoptions: Sequence[Adoption]) -> Iterator[Problem]:
    """Room at the store: for what is copied into it, and at least as much as the inputs take."""
    store = Store(plan.records or plan.store)
    wanted = sum(path.stat().st_size for each in adoptions for path in _local_files(each))
    for planned in plan.inputs:
        copies = store.by_digest(planned.source) if not planned.producer else []
        wanted += sum(file.size for file in copies[0].record.files) if copies else 0
    free = shutil.disk_usage(nearest(store.root)).free
    if free < max(wanted, FREE_FLOOR):
        what = f"{_megabytes(free)} MB are free, and at least "
        what += f"{_megabytes(max(wanted, FREE_FLOOR))} MB are needed"
        fix = "make room (`nemotron-style artifacts gc`), or choose another store"
        yield Problem(where=f"store {store.root}", what=what, fix=fix)


def _local_files(adoption: Adoption) -> list[Path]:
    """The files behind an adoption; none for what is fetched from a URI."""
    if "://" in adoption.location:
        return []
    path = Path(adoption.location).expanduser()
    return [each for each in path.rglob("*") if each.is_file()] if path.is_dir() else [path]


def nearest(path: Path) -> Path:
    """``path``, or the nearest folder above it that exists."""
    return next(each for each in (path, *path.parents) if each.exists())


def check_processes(plan: Plan) -> Iterator[Problem]:
    """No more processes on a machine than the profile has GPUs, or tasks, for."""
    if plan.launch != "torchrun":
        return
    for key, noun in (("gpus_per_node", "GPUs"), ("tasks_per_node", "tasks")):
        offered = plan.site.get(key)
        if offered and plan.processes > offered:
            source = _count_source(plan, "processes")
            what = f"the step starts {plan.processes} processes on each machine ({source}), "
            what += f"and the profile has {offered} {noun} there"
            fix = f"lower {source}, or raise {key}"
            yield Problem(where=f"profile {plan.profile}", key=key, what=what, fix=fix)


def check_nodes(plan: Plan) -> Iterator[Problem]:
    """No more machines than the profile offers."""
    offered = plan.site.get("nodes")
    if offered and plan.nodes > offered:
        source = _count_source(plan, "nodes")
        what = f"the step wants {plan.nodes} machines ({source}), and the profile offers {offered}"
        fix = f"lower {source}, or raise nodes"
        yield Problem(where=f"profile {plan.profile}", key="nodes", what=what, fix=fix)


def check_parallel(plan: Plan) -> Iterator[Problem]:
    """The processes can be divided into whole copies of the model."""
    if plan.launch != "torchrun":
        return
    world = plan.nodes * plan.processes
    for path, table in _tables(plan.config):
        sizes = {key: table[key] for key in MODEL_PARALLEL if type(table.get(key)) is int}
        product = 1
        for size in sizes.values():
            product *= size
        if product > 0 and world % product:
            named = " x ".join(f"{key} {size}" for key, size in sizes.items())
            what = f"{world} processes ({plan.nodes} machines x {plan.processes}) cannot be "
            what += f"divided into copies of a model over {product} ({named})"
            fix = f"make the number of processes a multiple of {product}"
            yield Problem(where=plan.step, key=path, what=what, fix=fix)


def check_port(plan: Plan) -> Iterator[Problem]:
    """The port on which processes of this machine are told to meet is free."""
    asked = plan.env.get(PORT, "")
    if plan.executor != "local" or not asked:
        return
    where, key = f"profile {plan.profile}", f"env.{PORT}"
    if not asked.isdecimal() or not 0 < int(asked) < 65536:
        yield Problem(where=where, key=key, what="is no port", got=asked, allowed="1 to 65535")
    elif not is_free(int(asked)):
        what, fix = f"port {asked} is taken on this machine", "choose another, or leave it out"
        yield Problem(where=where, key=key, what=what, fix=fix)


def is_free(port: int) -> bool:
    """Whether a server could listen on ``port`` of this machine."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError:
            return False
    return True


def _tables(values: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Mapping[str, Any]]]:
    yield path, values
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _tables(value, f"{path}.{key}" if path else key)


def _count_source(plan: Plan, name: str) -> str:
    """What the step counts ``name`` by: config keys, or a number of its manifest."""
    from nemotron_style.runtime.catalog.catalog import load_catalog

    step = load_catalog().steps.get(plan.step)
    source = step.run.resources.get(name) if step else None
    if isinstance(source, str):
        return source
    return " x ".join(map(str, source)) if isinstance(source, list | tuple) else "its manifest"


def _megabytes(size: int) -> int:
    return -(-size // 10**6)
