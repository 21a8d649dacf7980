"""Where the files of this project, and of the package itself, are found."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import nemotron_style

ROOT = 0
MARKERS = (".nemotron-style", "pyproject.toml", "env.toml", ".git")


def find_project_root(start: Path) -> Path:
    """The nearest of ``start`` and its parents that holds a project marker, else ``start``.

    Not above the user's home; and in a folder like /tmp, where anybody may put a marker, only the
    user's own (or root's) counts: what is found there decides where runs are kept and what they do.
    """
    start = Path(os.path.realpath(start))
    for folder in list_folders_above(start):
        if any(_is_marker(folder / name, folder) for name in MARKERS):
            return folder
    return start


def list_folders_above(start: Path) -> list[Path]:
    """``start`` and its parents, up to the user's home where it lies in that."""
    folders = [start, *start.parents]
    home = find_home()
    return folders[: folders.index(home) + 1] if home in folders else folders


def find_home() -> Path | None:
    """The user's home folder; None where it is the root of the disk, or not known."""
    home = os.path.realpath(os.path.expanduser("~"))
    return Path(home) if len(Path(home).parts) > 1 else None


def _is_marker(path: Path, folder: Path) -> bool:
    try:
        owner = path.stat().st_uid
        is_open = folder.stat().st_mode & stat.S_IWOTH
    except OSError:
        return False
    return not is_open or owner in (os.getuid(), ROOT)


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
