"""Hash a staged tree, and see to it that nobody changes it any more."""

from __future__ import annotations

import os
import shutil
import stat
from pathlib import Path
from typing import TYPE_CHECKING

from nemotron_style.runtime import atomic
from nemotron_style.runtime.errors import ArtifactError, Problem
from nemotron_style.runtime.store.digest import (
    RECORD_NAME,
    Hashed,
    directories,
    find_files,
    hash_files,
)

if TYPE_CHECKING:
    from nemotron_style.runtime.store.staged.ahead import HashAhead


def seal_tree(staged: Path, scratch: Path, ahead: HashAhead | None = None) -> list[Hashed]:
    """Hash the files of a staged tree, but for what was hashed ``ahead``; durable and read-only.

    Raises ArtifactError for something that cannot be committed; nothing was changed then.
    """
    found = find_files(staged)
    if (staged / RECORD_NAME).exists():
        what = "is the name of the record, which the store writes"
        raise ArtifactError(Problem(where=str(staged), key=RECORD_NAME, what=what))
    known = ahead.find(found) if ahead else {}  # by times that are about to change
    # Read-only before hashing: a change that slips in between would be committed unseen.
    rights = atomic.group_rights(scratch.parent)
    for file in found:
        _protect(file.source, scratch, rights & 0o040)
    hashed = hash_files(found, durable=True, known=known)
    # fsync of a file does not make its name durable; that of its directory does.
    for directory in directories(staged):
        state = directory.stat()
        if rights and state.st_uid == os.geteuid():
            directory.chmod(stat.S_IMODE(state.st_mode) | rights)
        atomic.sync(directory)
    return hashed


def _protect(path: Path, scratch: Path, rights: int) -> None:
    """Take write permission from a file; ``rights`` are those of a shared store's group."""
    state = path.stat()
    is_ours = os.geteuid() in (0, state.st_uid)
    # Through another hard link, or by another user who made it, it could still be written to.
    if state.st_nlink > 1 or not is_ours:
        atomic.make_dir(scratch)
        copy = atomic.unique_path(scratch, "copy")
        shutil.copyfile(path, copy)
        os.replace(copy, path)
    path.chmod(state.st_mode & 0o555 | rights)
