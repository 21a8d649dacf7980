"""The key of a run in the index: an empty file by which the newest runs of a step are found."""

from __future__ import annotations

import os
from pathlib import Path


def run_prefix(step: str) -> str:
    """What the ids of a step's runs begin with."""
    return step.replace("/", "-")


def keys_of_step(store: Path, step: str) -> Path:
    """The folder with the keys of a step's runs, whose names begin with the time of the plan."""
    return store / "index" / "run" / run_prefix(step)


def key_of_run(run_dir: Path, step: str, plan_file: Path) -> Path:
    """The key of a run that is, or will be, at ``run_dir``; its plan is in ``plan_file``."""
    began = plan_file.stat().st_mtime_ns
    return keys_of_step(run_dir.parent.parent, step) / render_key(began, run_dir.name)


def render_key(began: int, run_id: str) -> str:
    """The key of a run whose plan was written at this time (ns); keys sort by it."""
    return f"{began:020d}~{run_id}"


def run_of_key(key: str) -> str:
    """The run that a key is of."""
    return key.partition("~")[2]


def list_keys(store: Path) -> list[str]:
    """The keys of all steps' runs, in no order."""
    folder = store / "index" / "run"
    steps = os.listdir(folder) if folder.is_dir() else []
    return [key for step in steps for key in os.listdir(folder / step)]
