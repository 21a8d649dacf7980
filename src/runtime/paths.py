"""Where the files of this project, and of the package itself, are found."""

from __future__ import annotations

import os
from pathlib import Path

import nemotron_style

MARKERS = (".nemotron-style", "pyproject.toml", "env.toml", ".git")


def find_project_root(start: Path) -> Path:
    """The nearest of ``start`` and its parents that holds a project marker, else ``start``."""
    start = Path(os.path.realpath(start))
    for folder in (start, *start.parents):
        if any((folder / marker).exists() for marker in MARKERS):
            return folder
    return start


def shipped_folder(name: str) -> Path:
    """The folder ``name`` (``manifests`` or ``profiles``) that comes with the package.

    An installed wheel has it inside the package; a source tree has it beside ``src``, also when
    the package is reached through a link.
    """
    package = Path(nemotron_style.__file__).resolve().parent
    inside = package / name
    return inside if inside.is_dir() else package.parent / name


def expand_path(text: str | Path) -> Path:
    """``text`` as a path, ``~`` replaced by the home folder; that of nobody stays as it is."""
    return Path(os.path.expanduser(text))  # Path.expanduser raises RuntimeError for nobody's


def show_path(path: Path) -> str:
    """``path`` as a person would type it: relative when it lies below the working directory."""
    try:
        return str(path.relative_to(Path.cwd()))
    except (ValueError, OSError):  # it lies elsewhere, or the working directory was removed
        return str(path)
