"""Which root a store has: what the environment, the profile or the project says."""

from __future__ import annotations

import os
import re
from pathlib import Path

from nemotron_style.runtime.errors import Problem, UsageError
from nemotron_style.runtime.paths import expand_path, find_project_root

ROOT_VARIABLE = "NEMOTRON_STYLE_HOME"
_SCHEME = re.compile(r"[a-z][a-z0-9+.-]+:{1,2}/|[a-z0-9]+::", re.IGNORECASE)  # Path drops a slash


def default_root(profile_store: str | None = None) -> Path:
    """``$NEMOTRON_STYLE_HOME``, else the profile's store, else the one in the project.

    Raises UsageError for a URL, and for something there that is not a folder.
    """
    own = os.environ.get(ROOT_VARIABLE)
    chosen = own or profile_store
    if not chosen:
        return find_project_root(Path.cwd()) / ".nemotron-style"
    where = f"${ROOT_VARIABLE}" if own else "the profile's store"
    root = expand_path(check_root(chosen, where=where)).absolute()
    if root.exists() and not root.is_dir():
        raise UsageError(Problem(where=where, what="is not a folder", got=str(root)))
    return root


def check_root(root: str, *, where: str = "store") -> str:
    """``root``; raises UsageError for a URL, which would become a local folder of that name."""
    if not _SCHEME.match(root):
        return root
    what, fix = "a store at a URL is not supported", "mount it, and give the folder of the mount"
    raise UsageError(Problem(where=where, what=what, got=root, allowed="a folder", fix=fix))
