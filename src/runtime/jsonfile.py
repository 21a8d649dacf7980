"""Small files that are either whole or absent, and never half of each.

A reader that opens a file while it is being replaced sees the old text or the new one. What was
written survives the death of the process, and of the machine once the call has returned.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def write_text(path: Path, text: str, *, durable: bool = True) -> None:
    """Put ``text`` at ``path`` at once: a temporary file beside it, fsync, rename.

    ``durable=False`` leaves out the fsync, for what is worthless after a power cut.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    with open(aside, "w", encoding="utf-8", newline="\n") as file:
        file.write(text)
        file.flush()
        if durable:
            os.fsync(file.fileno())
    os.replace(aside, path)
    if durable:
        sync_directory(path.parent)


def write_json(path: Path, value: Mapping[str, Any], *, durable: bool = True) -> None:
    """Put ``value`` at ``path`` as JSON, its keys in their order."""
    write_text(path, json.dumps(value, indent=2) + "\n", durable=durable)


def read_json(path: Path) -> dict[str, Any] | None:
    """The JSON object at ``path``, or None when there is none that can be read."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return dict(value) if isinstance(value, dict) else None


def sync_tree(root: Path) -> None:
    """Force every file and directory under ``root`` to the disk."""
    for directory, _, names in os.walk(root):
        for name in names:
            with open(os.path.join(directory, name), "rb") as file:
                os.fsync(file.fileno())
        sync_directory(Path(directory))


def sync_directory(path: Path) -> None:
    """Force the names in one directory to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_tree(path: Path) -> None:
    """Delete a directory that may be partly gone already."""
    shutil.rmtree(path, ignore_errors=True)
