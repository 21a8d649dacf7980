"""A copy of the code of a job that may start hours later, as it was when the job was submitted.

Editing the sources while a job waits in a queue changes the next job, not this one. A snapshot is
named by the digest of its files, so that many runs share one.
"""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Iterator
from importlib import util
from pathlib import Path

from nemotron_style.runtime.atomic import move_dir, remove_tree, sync_tree
from nemotron_style.runtime.errors import Problem, UsageError
from nemotron_style.runtime.run.code import describe_code, find_module, hash_files
from nemotron_style.runtime.run.plan import Snapshot

FACTS = ("version", "commit", "difference")


def plan_snapshot(entrypoint: str, store: Path) -> Snapshot:
    """Where the code of a step, as it is now, will be kept. Writes nothing."""
    digest = hash_files(list_sources(entrypoint))
    code = describe_code(entrypoint, digest)
    facts = {key: code[key] for key in FACTS if key in code}
    return Snapshot(path=str(store / "code" / digest[:16]), digest=digest, facts=facts)


def write_snapshot(snapshot: Snapshot, entrypoint: str) -> None:
    """Copy the code to where the plan says, unless it is there.

    Raises ``UsageError`` when the sources changed since the plan was made.
    """
    final = Path(snapshot.path)
    if final.is_dir():
        return
    aside = final.with_name(f".{final.name}.{uuid.uuid4().hex}")
    for name, path in list_sources(entrypoint):
        copy = aside / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copy)
    if hash_files(sorted(_walk(aside, ""))) != snapshot.digest:
        remove_tree(aside)
        what = "the sources changed while the job was being handed over"
        raise UsageError(Problem(where=entrypoint, what=what, fix="run the same command again"))
    sync_tree(aside)
    if not move_dir(aside, final):
        remove_tree(aside)  # another submission was first, with the same content


def list_sources(entrypoint: str) -> list[tuple[str, Path]]:
    """Every file of this package and of the step's own, by its name below the snapshot."""
    top = entrypoint.partition(":")[0].partition(".")[0]
    sources: dict[str, Path] = {}
    for name in dict.fromkeys(("nemotron_style", top)):
        spec = util.find_spec(name)
        folders = list(spec.submodule_search_locations or []) if spec else []
        sources.update(_walk(Path(folders[0]) if folders else find_module(entrypoint), name))
    return sorted(sources.items())


def _walk(root: Path, name: str) -> Iterator[tuple[str, Path]]:
    if root.is_file():
        yield root.name, root
        return
    for directory, folders, files in os.walk(root):
        folders[:] = sorted(one for one in folders if one != "__pycache__" and one[0] != ".")
        for file in sorted(files):
            path = Path(directory, file)
            if path.suffix != ".pyc" and file[0] != ".":  # an .env is no code
                yield Path(name, path.relative_to(root)).as_posix(), path
