"""A copy of the code of a job that may start hours later, as it was when the job was submitted.

Editing the sources while a job waits in a queue changes the next job, not this one. A snapshot is
named by the digest of its files, so that many runs share one.
"""

from __future__ import annotations

import shutil
import uuid
from pathlib import Path

from nemotron_style.runtime.atomic import move_dir, remove_tree, sync_tree
from nemotron_style.runtime.errors import Problem, UsageError
from nemotron_style.runtime.run.code import (
    OWN,
    describe_code,
    find_package,
    hash_files,
    is_source,
    walk_sources,
)
from nemotron_style.runtime.run.plan import Snapshot

FACTS = ("version", "commit", "difference")


def plan_snapshot(store: Path, entrypoint: str, *objects: str) -> Snapshot:
    """Where the code of a step, as it is now, will be kept. Writes nothing.

    ``objects`` are what else of the step is imported: its config class.
    """
    digest = hash_files(list_sources(entrypoint, *objects))
    code = describe_code(entrypoint, digest)
    facts = {key: code[key] for key in FACTS if key in code}
    return Snapshot(path=str(store / "code" / digest[:16]), digest=digest, facts=facts)


def write_snapshot(snapshot: Snapshot, *objects: str) -> None:
    """Copy the code to where the plan says, unless it is there.

    Raises ``UsageError`` when the sources changed since the plan was made, or the copy did.
    """
    final = Path(snapshot.path)
    if final.is_dir():
        check_snapshot(snapshot)
        return
    aside = final.with_name(f".{final.name}.{uuid.uuid4().hex}")
    for name, path in list_sources(*objects):
        copy = aside / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copy)
    if hash_files(_list_copied(aside)) != snapshot.digest:
        remove_tree(aside)
        what = "the sources changed while the job was being handed over"
        raise UsageError(Problem(where=objects[0], what=what, fix="run the same command again"))
    sync_tree(aside)
    if not move_dir(aside, final):
        remove_tree(aside)  # another submission was first, with the same content


def check_snapshot(snapshot: Snapshot) -> None:
    """Raise ``UsageError`` when a copy of the code is not what it was made of."""
    if hash_files(_list_copied(Path(snapshot.path))) != snapshot.digest:
        what = "this copy of the code was changed after it was made"
        fix = "remove it, if no job uses it, and run the same command again"
        raise UsageError(Problem(where=snapshot.path, what=what, fix=fix))


def list_sources(*objects: str) -> list[tuple[str, Path]]:
    """Every file of this package and of those of ``objects``, by its name below the snapshot."""
    sources: dict[str, Path] = {}
    packages = dict(find_package(text) for text in (OWN, *objects))
    for top, folder in packages.items():
        sources.update(walk_sources(folder, top))
    return sorted(sources.items())


def _list_copied(aside: Path) -> list[tuple[str, Path]]:
    """The files of a copy without what Python wrote beside them since."""
    files = ((path.relative_to(aside), path) for path in aside.rglob("*") if path.is_file())
    return sorted(
        (name.as_posix(), path) for name, path in files if all(map(is_source, name.parts))
    )
