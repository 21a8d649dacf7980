"""A store that one test fills and others begin with."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any


def fill_once(home: Path, kept: Path, fill: Callable[[], Any]) -> Any:
    """What ``fill`` returned, which makes the store ``home``; JSON.

    The first call has it made. The others copy what was there then: runs name their store, so its
    place must be the same (``steady_mill_root``).
    """
    told = kept / "told.json"
    if told.exists():
        shutil.copytree(kept / "store", home, symlinks=True)
    else:
        value = fill()
        shutil.copytree(home, kept / "store", symlinks=True)
        told.write_text(json.dumps(value))
    return json.loads(told.read_text())
