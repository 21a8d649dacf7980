"""The key of a run in the index: an empty file by which the newest runs of a step are found."""

from __future__ import annotations

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
    return keys_of_step(run_dir.parent.parent, step) / f"{began:020d}~{run_dir.name}"
