"""The few file operations that the store's promises rest on.

Everything that must survive a crash goes through here, so that an object store could take the
place of the local disk: exclusive create, write whole or not at all, and move a directory into
place. Each function returns only when what it did would survive a power cut.
"""

from __future__ import annotations

import os
import shutil
import uuid
from pathlib import Path


def sync(path: Path) -> None:
    """Ask the disk to keep a file's bytes, or a directory's entries."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def make_dir(path: Path) -> None:
    """Create ``path`` and its missing parents, each durable in the one above it."""
    missing = []
    while not path.is_dir():
        missing.append(path)
        path = path.parent
    for directory in reversed(missing):
        directory.mkdir(exist_ok=True)
        sync(directory.parent)


def touch_new(path: Path) -> bool:
    """Create an empty file, or return False when it is there already: exactly one caller wins."""
    make_dir(path.parent)
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644))
    except FileExistsError:
        return False
    sync(path.parent)
    return True


def write_new(path: Path, text: str, *, scratch: Path) -> bool:
    """Create ``path`` with ``text`` in it, or return False when it is there already.

    The text is written aside and linked into place: unlike an exclusive create followed by a
    write, no reader and no crash can meet the name without its text.
    """
    make_dir(path.parent)
    aside = _write_aside(text, scratch)
    try:
        os.link(aside, path)
    except FileExistsError:
        return False
    finally:
        aside.unlink()
    sync(path.parent)
    return True


def write(path: Path, text: str, *, scratch: Path) -> None:
    """Put ``text`` at ``path``, replacing what is there in one step."""
    make_dir(path.parent)
    os.replace(_write_aside(text, scratch), path)
    sync(path.parent)


def move_dir(source: Path, target: Path) -> bool:
    """Rename a directory to a name not in use; False when something is there already."""
    make_dir(target.parent)
    if target.exists():
        return False
    os.rename(source, target)
    sync(target.parent)
    sync(source.parent)
    return True


def remove_tree(path: Path) -> None:
    """Remove a directory that nobody may refer to; one that is gone already is no error."""
    shutil.rmtree(path, ignore_errors=True)


def fresh(scratch: Path, hint: str) -> Path:
    """A path under ``scratch`` that nobody else uses (it is not created)."""
    return scratch / f"{hint}-{uuid.uuid4().hex}"


def _write_aside(text: str, scratch: Path) -> Path:
    make_dir(scratch)
    aside = fresh(scratch, "text")
    handle = os.open(aside, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
    with os.fdopen(handle, "w", encoding="utf-8", newline="") as stream:
        stream.write(text)
        stream.flush()
        os.fchmod(stream.fileno(), 0o444)
        os.fsync(stream.fileno())
    return aside
