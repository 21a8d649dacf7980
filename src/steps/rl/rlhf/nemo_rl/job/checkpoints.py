"""The checkpoints that NeMo-RL keeps: which are whole, which is the newest, which is the best.

::

    step_N/training_info.json       counters, and the ranked metric under its full name
           config.yaml              the whole config of the run
           train_dataloader*.pt     the place in the data
           policy/weights/          Megatron: latest_checkpointed_iteration.txt, iter_0000000/
    tmp_step_N/                     being written, or left by a crash
    old_step_N/                     replaced by a newer step_N, about to be deleted

NeMo-RL continues from the largest ``step_N`` without looking into it, so what is not whole is moved
out of its sight here.  Source: ``nemo_rl/utils/checkpoint.py``.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nemotron_style.steps.rl.rlhf.nemo_rl.version import Version

INFO, CONFIG, WEIGHTS = "training_info.json", "config.yaml", "policy/weights"
TRACKER = "latest_checkpointed_iteration.txt"
MEGATRON_FILES = ("run_config.yaml", "metadata.json", ".metadata")
_NAME = re.compile(r"(tmp_|old_)?step_(\d+)")


@dataclass(frozen=True)
class StepCheckpoint:
    """A ``step_N``: its step, its folder, what ``training_info.json`` holds, and what it lacks."""

    step: int
    path: Path
    info: dict[str, Any]
    lacks: tuple[str, ...] = ()

    @property
    def weights(self) -> Path:
        return self.path / WEIGHTS

    def metric(self, name: str | None) -> float | None:
        """The ranked metric, or None where it was not measured or is no finite number."""
        value = self.info.get(name) if name else None
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        return float(value) if is_number and math.isfinite(value) else None


def read_checkpoints(folder: Path) -> list[StepCheckpoint]:
    """Every ``step_N`` of a folder, whole or not, the oldest first."""
    found = [(int(match[2]), path) for match, path in _entries(folder) if not match[1]]
    return [_read_checkpoint(step, path) for step, path in sorted(found)]


def whole_checkpoints(folder: Path) -> list[StepCheckpoint]:
    """Those of :func:`read_checkpoints` that lack nothing."""
    return [each for each in read_checkpoints(folder) if not each.lacks]


def list_halves(folder: Path, *, after: int) -> list[str]:
    """What is there of checkpoints after a step that are not whole; a line of text for each."""
    lines = [
        f"{each.path.name} lacks {', '.join(each.lacks)}"
        for each in read_checkpoints(folder)
        if each.lacks and each.step > after
    ]
    found = [path.name for match, path in _entries(folder) if match[1] and int(match[2]) > after]
    return lines + [f"{name} is half of one" for name in found]


def find_best(
    checkpoints: list[StepCheckpoint], metric: str | None, *, higher_is_better: bool
) -> StepCheckpoint | None:
    """The checkpoint with the best metric, the newest of equal ones; None where none has it."""
    sign = 1 if higher_is_better else -1
    ranked = [
        (sign * value, each.step, each)
        for each in checkpoints
        if (value := each.metric(metric)) is not None
    ]
    return max(ranked, key=lambda item: item[:2])[2] if ranked else None


def clear_leftovers(folder: Path, aside: Path, version: Version) -> Iterator[str]:
    """Move what a crash left out of NeMo-RL's sight, into ``aside``; a line of text for each.

    An ``old_step_N`` whose ``step_N`` is missing was whole: the crash came between the two renames
    that replace one by the other.  It is put back.
    """
    for match, path in list(_entries(folder)):
        prefix, step = match[1] or "", int(match[2])
        final = folder / f"step_{step}"
        if prefix == "old_" and not final.exists() and not _read_checkpoint(step, path).lacks:
            os.rename(path, final)
            yield f"{path.name} was not yet replaced by a newer one: it is {final.name} again"
        elif prefix == "tmp_" and version >= Version.HEAD:
            yield f"{path.name} is half of a checkpoint; NeMo-RL deletes it"
        elif prefix:
            yield f"{path.name} is half of a checkpoint: moved to {_move_aside(path, aside)}"
    for each in read_checkpoints(folder):
        if each.lacks:
            place, lacks = _move_aside(each.path, aside), ", ".join(each.lacks)
            yield f"{each.path.name} is not whole (it lacks {lacks}): moved to {place}"


def resolve_iteration(root: Path) -> Path | None:
    """The iteration's folder in a Megatron checkpoint, found as Megatron-Bridge finds it.

    ``root`` itself where it is one, else what the tracker names (a number, or ``release``), else
    the last ``iter_*``.  None when there is none.
    """
    if (root / "metadata.json").is_file():
        return root
    try:
        named = (root / TRACKER).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return max(root.glob("iter_*"), default=None)
    if named == "release":
        return root / "release"
    return root / f"iter_{int(named):07d}" if named.isdecimal() else None


def _entries(folder: Path) -> Iterator[tuple[re.Match[str], Path]]:
    if not folder.is_dir():
        return
    for path in sorted(folder.iterdir()):
        if path.is_dir() and (match := _NAME.fullmatch(path.name)):
            yield match, path


def _read_checkpoint(step: int, path: Path) -> StepCheckpoint:
    lacks = [] if any(path.glob("train_dataloader*.pt")) else ["train_dataloader.pt"]
    lacks += [] if _has_bytes(path / CONFIG) else [CONFIG]
    info: Any = None
    try:
        info = json.loads((path / INFO).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        lacks.append(INFO)
    if not isinstance(info, dict):
        info = {}
    lacks += [f"{WEIGHTS}/{name}" for name in _missing_weights(path / WEIGHTS)]
    return StepCheckpoint(step, path, info, tuple(sorted(set(lacks))))


def _missing_weights(weights: Path) -> Iterator[str]:
    """What the weights lack. Megatron writes its tracker last, after the shards of all ranks."""
    iteration = weights / "iter_0000000"  # always this one, whatever the step
    if not iteration.is_dir() and not (weights / TRACKER).exists():
        is_filled = weights.is_dir() and any(weights.iterdir())  # DTensor has another layout
        yield from () if is_filled else ("iter_0000000",)
        return
    if resolve_iteration(weights) != iteration or not (weights / TRACKER).exists():
        yield TRACKER
    for name in MEGATRON_FILES:
        if not _has_bytes(iteration / name):
            yield f"{iteration.name}/{name}"
    if not any(iteration.glob("*.distcp")):
        yield f"{iteration.name}/*.distcp"


def _has_bytes(path: Path) -> bool:
    return path.is_file() and path.stat().st_size > 0


def _move_aside(path: Path, aside: Path) -> Path:
    """Rename ``path`` into ``aside`` under a name that is free there."""
    aside.mkdir(parents=True, exist_ok=True)
    names = (f"{path.name}.{number}" for number in range(1, len(list(aside.iterdir())) + 2))
    place = aside / next(name for name in names if not (aside / name).exists())
    os.rename(path, place)
    return place
