"""In which files the code of two runs differs, where both are at hand.

The code of a run is its copy (those of detached runs, containers and clusters have one), or else
what is installed, as long as that is what the run had.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from nemotron_style.runtime.errors import StepsError
from nemotron_style.runtime.run.code import OWN, digest_code, is_source
from nemotron_style.runtime.run.folder import RunFolder
from nemotron_style.runtime.run.plan import Plan
from nemotron_style.runtime.run.snapshot import list_sources

MOST_BYTES = 1 << 20  # of a file that is shown; larger ones are data


@dataclass(frozen=True)
class FileChange:
    """A file of the code that differs; ``diff`` is a unified diff, empty for what is no text."""

    name: str
    left: bool
    right: bool
    diff: str

    @property
    def lines(self) -> tuple[int, int]:
        """How many lines were added, and how many removed."""
        body = self.diff.splitlines()[2:]
        return sum(line[:1] == "+" for line in body), sum(line[:1] == "-" for line in body)


def find_sources(run: RunFolder) -> Mapping[str, Path] | None:
    """The files of the code that a run had, by name; None where they are not at hand."""
    try:
        plan = run.plan
        if plan.snapshot and Path(plan.snapshot.path).is_dir():
            return dict(_list_copied(Path(plan.snapshot.path)))
        if digest_code(plan.entrypoint, plan.config_class) == plan.identity.get("code"):
            return dict(list_sources(plan.entrypoint, plan.config_class))
    except (StepsError, OSError):  # no such run here, or no such package any more
        pass
    return None


def _list_copied(copy: Path) -> Iterator[tuple[str, Path]]:
    for path in sorted(copy.rglob("*")):
        name = path.relative_to(copy)
        if path.is_file() and all(map(is_source, name.parts)):
            yield name.as_posix(), path


def compare_code(
    left: Mapping[str, Path], right: Mapping[str, Path], *, plan: Plan
) -> list[FileChange]:
    """The files that differ, those that belong to the identity of the step's runs first."""
    names = [name for name in {**left, **right} if _read(left, name) != _read(right, name)]
    own = _own_folders(plan)
    names.sort(key=lambda name: (not name.startswith(own), name))
    return [
        FileChange(name, name in left, name in right, _diff(name, left, right)) for name in names
    ]


def _own_folders(plan: Plan) -> tuple[str, ...]:
    """Where the code of a step is: its package (in this one, its folder), and the blocks."""
    folder = plan.entrypoint.partition(":")[0].rpartition(".")[0].replace(".", "/")
    package = folder if folder.startswith(f"{OWN}/") else folder.partition("/")[0]
    return (f"{package}/", f"{OWN}/steps/blocks/")


def _diff(name: str, left: Mapping[str, Path], right: Mapping[str, Path]) -> str:
    sides = [_read(files, name) or b"" for files in (left, right)]
    if max(map(len, sides)) > MOST_BYTES:
        return ""
    try:
        ours, theirs = (side.decode().splitlines() for side in sides)
    except UnicodeDecodeError:
        return ""
    lines = difflib.unified_diff(ours, theirs, f"a/{name}", f"b/{name}", lineterm="")
    return "\n".join(lines)


def _read(files: Mapping[str, Path], name: str) -> bytes | None:
    return files[name].read_bytes() if name in files else None
