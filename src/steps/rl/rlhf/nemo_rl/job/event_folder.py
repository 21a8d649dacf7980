"""The metrics that NeMo-RL wrote for TensorBoard, by step, under the names of the embedded loop.

The embedded loop has its names from NeMo-RL: ``train/`` goes from the front, the rest stays.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from nemotron_style.steps.rl.rlhf.nemo_rl.job.event_file import EventFile

FILES = "exp_*/tensorboard/events.out.tfevents.*"
TRAIN = "train/"
KEPT = (TRAIN, "validation/", "timing/", "performance/")
"""Others, such as the use of GPUs, are not measured by step."""


class EventFolder:
    """The event files of all attempts of a run, ``exp_001`` the first one's."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._files: dict[Path, EventFile] = {}

    def read(self) -> dict[int, dict[str, float]]:
        """What came since the last call, by step; of several attempts the last one's."""
        found: dict[int, dict[str, float]] = {}
        for file in self._open():
            for step, tag, value in file.read():
                if name := rename(tag):
                    found.setdefault(step, {})[name] = value
        return found

    @property
    def damage(self) -> list[str]:
        """Where reading had to end."""
        return [f"{file.path}: {file.damage}" for file in self._files.values() if file.damage]

    def _open(self) -> Iterator[EventFile]:
        for path in sorted(self._folder.glob(FILES), key=_age):
            yield self._files.setdefault(path, EventFile(path))


def rename(tag: str) -> str | None:
    """The name of a tag among our metrics, None for one that is not ours to log."""
    if not tag.startswith(KEPT):
        return None
    name = tag.removeprefix(TRAIN)
    return None if name == "step" else name


def _age(path: Path) -> tuple[int, str]:
    """Attempts by their number: exp_1000 is later than exp_999."""
    number = path.parts[-3].removeprefix("exp_")
    return int(number) if number.isdecimal() else 0, path.name
