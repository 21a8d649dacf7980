"""The numbers of a run over its steps: one JSON line a step, and TensorBoard where installed.

``metrics.jsonl`` is the record; TensorBoard is a view of it. A resumed attempt first cuts both
back to the checkpoint it starts from, so that no step is logged twice.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from nemotron_style.runtime.atomic import write_text
from nemotron_style.runtime.step.fact import plain_number


class Metrics:
    """``log`` numbers by step. Ranks other than the first call it too, and nothing happens.

    ``on_line`` is called after each line that was written to ``metrics.jsonl``.
    """

    def __init__(self, run_dir: Path, *, enabled: bool = True) -> None:
        self._path = run_dir / "metrics.jsonl"
        self._board_path = run_dir / "tensorboard"
        self._enabled = enabled
        self._lines: IO[str] | None = None
        self._board: Any = None  # a SummaryWriter of torch
        self._first_step = 0
        self.on_line: Callable[[], None] | None = None
        self.last: dict[str, Any] = {}
        self.last_validation: dict[str, Any] = {}

    def log(self, step: int, **numbers: float) -> None:
        """Add one line ``{"step": step, name: number, ...}``; anything ``float()`` takes will do.

        A number that is not finite is written as ``"nan"``, ``"inf"`` or ``"-inf"``, since JSON
        has no word for it.
        """
        if not self._enabled:
            return
        where = f"metrics of step {step}"
        figures = {
            name: plain_number(number, where=where, key=name) for name, number in numbers.items()
        }
        self.last = {"step": int(step), **figures}
        self.last_validation = keep_validation(self.last) or self.last_validation
        if self._lines is None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._lines = open(self._path, "a", encoding="utf-8")  # noqa: SIM115 - kept open
        self._lines.write(json.dumps(self.last) + "\n")
        self._lines.flush()
        self._show(step, figures)
        if self.on_line:
            self.on_line()

    def history(self) -> list[dict[str, Any]]:
        """Every line so far, those of earlier attempts included."""
        return read_metrics(self._path) if self._path.exists() else []

    def rewind(self, step: int) -> None:
        """Forget every line after ``step`` (0: all of them), and any that was cut short."""
        if not self._enabled:
            return
        self._first_step = step + 1
        if self._path.exists():
            kept = [line for line in read_metrics(self._path) if line["step"] <= step]
            self.last = kept[-1] if kept else {}
            self.last_validation = next(filter(None, map(keep_validation, reversed(kept))), {})
            write_text(self._path, "".join(json.dumps(line) + "\n" for line in kept))

    def close(self) -> None:
        if self._lines is not None:
            os.fsync(self._lines.fileno())
            self._lines.close()
            self._lines = None
        if self._board is not None:
            self._board.close()
            self._board = None

    def _show(self, step: int, figures: dict[str, Any]) -> None:
        if self._board is None:
            self._board = open_board(self._board_path, first_step=self._first_step)
        if self._board is not None:
            for name, value in figures.items():
                self._board.add_scalar(name, float(value), step)


def keep_validation(line: dict[str, Any]) -> dict[str, Any]:
    """The step and the figures of a line that were measured on held-out rows; {} without any."""
    figures = {name: value for name, value in line.items() if name.startswith("validation")}
    return {"step": line["step"], **figures} if figures else {}


def open_board(path: Path, *, first_step: int) -> Any:
    """A TensorBoard writer that hides later steps of an earlier attempt; None where it is absent.

    Only where torch is loaded already: a step that trains nothing should not pay for the import.
    """
    if "torch" not in sys.modules:
        return None
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(path), purge_step=first_step)


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a ``metrics.jsonl``; a last line cut short by a kill is left out."""
    return parse_lines(path.read_text(encoding="utf-8"))


def parse_lines(text: str) -> list[dict[str, Any]]:
    """The lines of a ``metrics.jsonl`` that are whole."""
    lines = []
    for one in text.splitlines():
        try:
            line = json.loads(one)
        except ValueError:
            continue
        if isinstance(line, dict) and isinstance(line.get("step"), int):
            lines.append(line)
    return lines
