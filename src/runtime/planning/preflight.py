"""What stands in the way of a run, found before anything is submitted.

These checks are common to all executors; a launcher adds its own (``Launcher.check``). They read
and change nothing.
"""

from __future__ import annotations

import grp
import math
import os
import pwd
import shutil
import socket
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from nemotron_style.runtime.atomic import nearest_folder, unwritable
from nemotron_style.runtime.errors import Problem
from nemotron_style.runtime.paths import expand_path
from nemotron_style.runtime.planning.inputs import Adoption
from nemotron_style.runtime.planning.notes import describe_count
from nemotron_style.runtime.planning.tree_step import check_job
from nemotron_style.runtime.run.folder import open_store
from nemotron_style.runtime.run.plan import Plan
from nemotron_style.runtime.store.layout import MAKE_ROOM
from nemotron_style.runtime.store.record import Artifact
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

    ``adoptions`` will be brought into the store before the run begins.
    """
    return [
        *check_inputs(plan, adoptions),
        *check_shared(plan),
        *check_access(plan),
        *check_disk(plan, adoptions),
        *check_shape(plan),
        *check_port(plan),
        *check_job(plan),
    ]


def check_shape(plan: Plan) -> Iterator[Problem]:
    """Machines, processes and copies of the model fit each other; looked at in a dry run too."""
    yield from check_counts(plan)
    yield from check_parallel(plan)


def check_inputs(plan: Plan, adoptions: Sequence[Adoption]) -> Iterator[Problem]:
    """Content from outside the runs is whole in the store, or can be read where it lies."""
    store = open_store(plan)
    incoming = {adoption.digest: adoption for adoption in adoptions}
    for planned in plan.inputs:
        if planned.producer:
            continue  # it will exist when the run that makes it is over
        where, key = plan.step, planned.slot
        copies = store.by_digest(planned.source)
        if copies:
            yield from store.verify(copies[0], deep=False)
        elif planned.source in incoming:
            for path in _local_files(incoming[planned.source]):
                if not os.access(path, os.R_OK):
                    yield Problem(where=where, key=key, what="cannot be read", got=str(path))
        else:
            what, fix = f"{planned.source} is not in the store", "give the input again, by -i"
            yield Problem(where=where, key=key, what=what, fix=fix)


def check_shared(plan: Plan) -> Iterator[Problem]:
    """The process that carries out the run sees the store."""
    if plan.root and plan.root.startswith("memory://"):
        what = "is in the memory of this process, and a run is carried out by another"
        yield Problem(where=f"store {plan.root}", what=what, fix="choose a folder or a bucket")


def check_access(plan: Plan) -> Iterator[Problem]:
    """Everything that the run will write can be written, by this user, before it has computed."""
    store = open_store(plan)
    # What is committed there is not seen from here.
    is_remote = plan.records is not None and plan.root is None
    names = [] if is_remote else [output.name for output in plan.outputs]
    inputs = [] if is_remote else [copy for copy in _committed_inputs(plan, store) if copy]
    folders = [plan.record_dir / name for name in ("attempts", "decisions", "staging")]
    refused = list(dict.fromkeys([*store.unwritable(names, inputs), *unwritable(folders)]))
    if refused:
        first, more = refused[0], f" and {len(refused) - 1} more" if len(refused) > 1 else ""
        what = f"{describe_user()} cannot write in {first}{more} ({describe_owner(first)})"
        fix = "choose another store, or ask the owner to share this one with its group "
        fix += f"(chmod -R g+rwX {store.local} and chmod g+s on its folders)"
        if os.statvfs(nearest_folder(first)).f_flag & os.ST_RDONLY:  # rights would change nothing
            what, fix = f"{first} is on a file system that is read-only", "choose another store"
        yield Problem(where=f"store {store.local}", what=what, fix=fix)
    yield from store.check_root()


def _committed_inputs(plan: Plan, store: Store) -> Iterator[Artifact | None]:
    for planned in plan.inputs:
        if planned.producer:
            yield store.output_of(*planned.producer)
        else:
            yield next(iter(store.by_digest(planned.source)), None)


def describe_user() -> str:
    """The name of the user that this process acts for."""
    return _name_of(pwd.getpwuid, os.geteuid())


def describe_owner(folder: Path) -> str:
    """Whose a folder is, and its mode, as ``ls -l`` shows them."""
    state = folder.stat()
    owner = f"{_name_of(pwd.getpwuid, state.st_uid)}:{_name_of(grp.getgrgid, state.st_gid)}"
    return f"{owner}, {stat.filemode(state.st_mode)}"


def _name_of(look_up: Callable[[int], tuple[Any, ...]], number: int) -> str:
    try:
        return str(look_up(number)[0])
    except KeyError:  # a container may not know it
        return str(number)


def check_disk(plan: Plan, adoptions: Sequence[Adoption]) -> Iterator[Problem]:
    """The store has room for what is copied into it, and for at least as much as the inputs."""
    store = open_store(plan)
    needed = sum(path.stat().st_size for each in adoptions for path in _local_files(each))
    for planned in plan.inputs:
        copies = store.by_digest(planned.source) if not planned.producer else []
        needed += sum(file.size for file in copies[0].record.files) if copies else 0
    needed = max(needed, FREE_FLOOR)
    free = shutil.disk_usage(nearest_folder(store.local)).free
    if free < needed:
        what = f"{math.ceil(free / 10**6)} MB are free, and at least "
        what += f"{math.ceil(needed / 10**6)} MB are needed"
        yield Problem(where=f"store {store.local}", what=what, fix=MAKE_ROOM)


def _local_files(adoption: Adoption) -> list[Path]:
    """The files that will be copied; none for a URI, whose size is not known before."""
    if "://" in adoption.location:
        return []
    path = expand_path(adoption.location)
    return [each for each in path.rglob("*") if each.is_file()] if path.is_dir() else [path]


def check_counts(plan: Plan) -> Iterator[Problem]:
    """The profile offers as many machines, and GPUs or tasks on each, as the step uses."""
    machines = f"the step needs {plan.nodes} machines", plan.nodes, "nodes"
    limits = [("nodes", *machines, "the profile offers {}")]
    if plan.launch == "torchrun":
        processes = f"the step starts {plan.processes} processes on each machine"
        for key, noun in (("gpus_per_node", "GPUs"), ("tasks_per_node", "tasks")):
            offer = f"the profile has {{}} {noun} there"
            limits.append((key, processes, plan.processes, "processes", offer))
    for key, needs, number, resource, offer in limits:
        limit = plan.site.get(key)
        if limit and number > limit:
            source = _count_source(plan, resource)
            what = f"{needs} ({source}), and {offer.format(limit)}"
            fix = f"lower {source}, or raise {key}"
            yield Problem(where=f"profile {plan.profile}", key=key, what=what, fix=fix)


def _count_source(plan: Plan, resource: str) -> str:
    from nemotron_style.runtime.catalog.catalog import load_catalog

    if plan.files:
        return "what the config asks for, see the notes of --dry-run"
    step = load_catalog().steps.get(plan.step)
    return describe_count(step.run.resources.get(resource) if step else None)


def check_parallel(plan: Plan) -> Iterator[Problem]:
    """The processes can be divided into whole copies of the model."""
    if plan.launch != "torchrun":
        return
    world_size = plan.nodes * plan.processes
    for path, table in _tables(plan.config):
        sizes = {key: table[key] for key in MODEL_PARALLEL if type(table.get(key)) is int}
        per_copy = math.prod(sizes.values())
        if per_copy > 0 and world_size % per_copy:
            named = " x ".join(f"{key} {size}" for key, size in sizes.items())
            what = f"{world_size} processes ({plan.nodes} machines x {plan.processes}) cannot be "
            what += f"divided into copies of a model over {per_copy} ({named})"
            next_one = -(-world_size // per_copy) * per_copy
            fix = f"start a multiple of {per_copy} processes, such as {next_one}, "
            fix += f"or divide the model over a number that divides {world_size}"
            yield Problem(where=plan.step, key=path, what=what, fix=fix)


def _tables(values: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Mapping[str, Any]]]:
    yield path, values
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _tables(value, f"{path}.{key}" if path else key)


def check_port(plan: Plan) -> Iterator[Problem]:
    """The port on which the processes of this machine will meet is free."""
    port = plan.env.get(PORT, "")
    if plan.executor != "local" or not port:
        return
    where, key = f"profile {plan.profile}", f"env.{PORT}"
    if not port.isdecimal() or not 0 < int(port) < 65536:
        what, allowed = "is not a port number", "1 to 65535"
        yield Problem(where=where, key=key, what=what, got=port, allowed=allowed)
    elif not is_free(int(port)):
        what, fix = f"port {port} is taken on this machine", "choose another, or leave it out"
        yield Problem(where=where, key=key, what=what, fix=fix)


def is_free(port: int) -> bool:
    """Whether a server could listen on ``port`` of this machine."""
    with socket.socket() as server:
        # As servers do: a port whose last connection has only just closed counts as free.
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            server.bind(("", port))
        except OSError:
            return False
    return True
