"""Files that the attempts of a run leave to each other: whole, or as they were before."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def write_whole(path: Path, text: str) -> None:
    """Put ``text`` at ``path`` in one step; a crash leaves what was there."""
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    with aside.open("w", encoding="utf-8", newline="") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(aside, path)


def write_state(path: Path, state: Mapping[str, Any]) -> None:
    """Put an object at ``path`` as JSON."""
    write_whole(path, json.dumps(dict(state), indent=2) + "\n")


def read_state(path: Path) -> dict[str, Any] | None:
    """The object at ``path``, or None where there is none that can be read."""
    try:
        state = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return state if isinstance(state, dict) else None
