"""Folders of steps in NVIDIA Nemotron's layout that somebody added, and what they are called.

``NEMOTRON_STYLE_STEPS`` and a profile's ``steps`` name them as ``NAME=FOLDER``. The ids of a
tree's steps begin with its name, so that none of them is taken for a step of this package.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from nemotron_style.runtime.errors import Problem, UsageError
from nemotron_style.runtime.paths import expand_path

VARIABLE = "NEMOTRON_STYLE_STEPS"
DEFAULT_NAME = "nemotron"
NAME = re.compile(r"[a-z0-9][a-z0-9_]*")
INSIDE_A_CHECKOUT = Path("src", "nemotron", "steps")


@dataclass(frozen=True)
class Tree:
    """A folder below which every ``step.toml`` is a step; its ``types.toml`` may name kinds."""

    name: str
    root: Path

    def name_step(self, own_id: str) -> str:
        """The id of a step here, from the one that its own file says."""
        return f"{self.name}/{own_id}"

    @property
    def import_root(self) -> Path | None:
        """The folder to import from, where the tree is a part of a Python package; else None."""
        folder = self.root
        while (folder / "__init__.py").is_file():
            folder = folder.parent
        return None if folder == self.root else folder


def find_trees(profile_steps: Sequence[str] = ()) -> tuple[Tree, ...]:
    """The trees of the environment, then those of a profile; the same one twice counts once.

    Raises UsageError with every entry that names no folder, or the name of another tree.
    """
    entries = [(VARIABLE, each) for each in os.environ.get(VARIABLE, "").split(os.pathsep)]
    entries += [("profile: steps", each) for each in profile_steps]
    trees: dict[str, Tree] = {}
    problems: list[Problem] = []
    for where, entry in entries:
        if not entry.strip():
            continue
        name, equals, text = entry.strip().partition("=")
        name, text = (name, text) if equals else (DEFAULT_NAME, name)
        root = Path(os.path.abspath(expand_path(text)))
        if (root / INSIDE_A_CHECKOUT).is_dir():
            root = root / INSIDE_A_CHECKOUT
        if not NAME.fullmatch(name):
            what, allowed = f"{name!r} cannot be the name of a tree", "lower case, digits and _"
            problems.append(Problem(where=where, what=what, allowed=allowed))
        elif not text or not root.is_dir():
            what, fix = "there is no such folder", "write NAME=FOLDER, or FOLDER"
            problems.append(Problem(where=where, what=what, got=repr(text), fix=fix))
        elif trees.setdefault(name, Tree(name, root)).root != root:
            what, fix = f"{name!r} names two folders", "write NAME=FOLDER with a name for each"
            got = f"{trees[name].root} and {root}"
            problems.append(Problem(where=where, what=what, got=got, fix=fix))
    if problems:
        raise UsageError(problems)
    return tuple(trees.values())
