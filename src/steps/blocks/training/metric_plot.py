"""What a run has written about itself: read for a plot, copied where somebody wants it."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

COPIED = ("metrics.jsonl", "tensorboard", "plots", "samples")


def series(lines: Sequence[Mapping[str, Any]], name: str) -> tuple[list[int], list[float]]:
    """Steps and values of the lines of ``metrics.jsonl`` that have ``name``."""
    found = [(line["step"], float(line[name])) for line in lines if name in line]
    return [step for step, _ in found], [value for _, value in found]


def copy_logs(run_dir: Path, target: Path) -> None:
    """Copy metrics, TensorBoard files, plots and samples to ``exp_manager.explicit_log_dir``."""
    target.mkdir(parents=True, exist_ok=True)
    for name in COPIED:
        source = run_dir / name
        if source.is_dir():
            shutil.copytree(source, target / name, dirs_exist_ok=True)
        elif source.is_file():
            shutil.copyfile(source, target / name)
