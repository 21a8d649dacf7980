"""The best and the worst samples of a step, written where they can be read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nemotron_style.steps.blocks.data.jsonl import write_rows

FOLDER = "samples"
SHOWN = 4
WIDTH = 70

Row = dict[str, Any]
"""A sample: its ``reward``, the index ``group`` of its prompt, its index ``sample`` there, ..."""


def best_and_worst(rows: Sequence[Row]) -> list[Row]:
    """The :data:`SHOWN` best and as many of the worst rows, best first; each stands once."""
    ranked = sorted(rows, key=lambda row: (-row["reward"], row["group"], row["sample"]))
    return ranked if len(ranked) <= 2 * SHOWN else ranked[:SHOWN] + ranked[-SHOWN:]


def write_samples(run_dir: Path, step: int, rows: Sequence[Row]) -> None:
    """Write ``samples/step-00000001.jsonl``; a step that is done again writes the same."""
    folder = run_dir / FOLDER
    folder.mkdir(exist_ok=True)
    write_rows(folder / f"step-{step:08d}.jsonl", rows)


def describe_samples(rows: Sequence[Row], *, text: str) -> str:
    """The best and the worst of ``rows`` in one line; ``text`` names what was sampled."""
    if not rows:
        return "no sample has a reward"
    return "; ".join(
        f"{word} {row['reward']:.3g} {_shorten(row[text])}"
        for word, row in (("best", rows[0]), ("worst", rows[-1]))
    )


def _shorten(text: str) -> str:
    plain = " ".join(text.split())
    return plain if len(plain) <= WIDTH else plain[: WIDTH - 3] + "..."
