"""Samples written where they can be read: the best and the worst of a step, before and after."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nemotron_style.steps.blocks.data.jsonl import write_rows
from nemotron_style.steps.blocks.data.markdown_table import markdown_table

FOLDER = "samples"
SHOWN = 4
WIDTH = 70
PROMPT_WIDTH = 400

Row = dict[str, Any]
"""A sample: its ``reward``, the index ``group`` of its prompt, its index ``sample`` there, ..."""


def best_and_worst(rows: Sequence[Row]) -> list[Row]:
    """The :data:`SHOWN` best and as many of the worst rows, best first; each stands once."""
    return keep_ends(sorted(rows, key=_rank))


def widest_group(rows: Sequence[Row]) -> list[Row]:
    """The group whose rewards differ most, best first, each of its rows marked as ``whole_group``.

    Of a large group the best and the worst. Nothing where no group has two different rewards.
    """
    groups: dict[int, list[Row]] = {}
    for row in sorted(rows, key=_rank):
        groups.setdefault(row["group"], []).append(row)
    widest = max(groups.values(), key=_spread, default=[])
    size = len(widest)
    found = keep_ends(widest) if widest and _spread(widest) else []
    return [{**row, "whole_group": size} for row in found]


def keep_ends(ranked: Sequence[Row]) -> list[Row]:
    """The :data:`SHOWN` first and as many of the last rows; each stands once."""
    return list(ranked) if len(ranked) <= 2 * SHOWN else [*ranked[:SHOWN], *ranked[-SHOWN:]]


def write_samples(run_dir: Path, step: int, rows: Sequence[Row]) -> None:
    """Write ``samples/step-00000001.jsonl``: the best and the worst rows, and one whole group.

    A step that is done again writes the same.
    """
    write_sample_rows(
        run_dir, f"step-{step:08d}.jsonl", [*best_and_worst(rows), *widest_group(rows)]
    )


def write_validation(
    run_dir: Path, step: int, rows: Sequence[Row], *, gain: Callable[[Row], float]
) -> None:
    """Write ``samples/validation-00000001.jsonl``: held-out prompts, answered before and now.

    A row has ``prompt``, ``before`` and ``after``, and whatever judged them. Of many rows those
    stay that gained most and least. Old answers may be those of an earlier attempt.
    """
    ranked = sorted(rows, key=gain, reverse=True)
    write_sample_rows(run_dir, f"validation-{step:08d}.jsonl", keep_ends(ranked))


def write_loss_mask(run_dir: Path, rows: Sequence[Sequence[tuple[str, bool]]]) -> None:
    """Write ``samples/loss_mask.json``: the texts of rows, each with whether the loss counts it.

    Written once: an attempt that continues trains on the same rows.
    """
    path = run_dir / FOLDER / "loss_mask.json"
    if rows and not path.exists():
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(rows, ensure_ascii=False, indent=1), encoding="utf-8")


def write_sample_rows(run_dir: Path, name: str, rows: Sequence[Row]) -> None:
    """Write a file of rows into ``samples`` of the run's folder."""
    folder = run_dir / FOLDER
    folder.mkdir(exist_ok=True)
    write_rows(folder / name, rows)


def replace_samples(path: Path, text: str) -> None:
    """Put a new text in the place of a file; whoever is killed in between leaves the old one."""
    path.parent.mkdir(exist_ok=True)
    aside = path.with_suffix(".new")
    aside.write_text(text, encoding="utf-8")
    os.replace(aside, path)


def describe_samples(rows: Sequence[Row], *, text: str) -> str:
    """The best and the worst of ``rows`` in one line; ``text`` names what was sampled."""
    if not rows:
        return "no sample has a reward"
    ranked = sorted(rows, key=_rank)
    return "; ".join(
        f"{word} {row['reward']:.3g} {_shorten(row[text])}"
        for word, row in (("best", ranked[0]), ("worst", ranked[-1]))
    )


def _rank(row: Row) -> tuple[float, int, int]:
    return -row["reward"], row["group"], row["sample"]


def _spread(group: Sequence[Row]) -> float:
    """How far the rewards of a ranked group lie apart."""
    return float(group[0]["reward"] - group[-1]["reward"])


def _shorten(text: str) -> str:
    plain = " ".join(text.split())
    return plain if len(plain) <= WIDTH else plain[: WIDTH - 3] + "..."


def shorten_prompt(text: str) -> str:
    """The last :data:`PROMPT_WIDTH` characters of a prompt: the question is at its end."""
    text = text.strip()
    return text if len(text) <= PROMPT_WIDTH else "… " + text[-PROMPT_WIDTH:]


@dataclass(frozen=True)
class SampleFile:
    """What a model said or scored after some numbers of updates, kept in the run's folder.

    ``samples/<name>.json`` holds the texts by the number of updates, so that an attempt that
    continues still has those of the start; ``samples/samples.md`` is the table for people.
    """

    run_dir: Path
    name: str

    @property
    def path(self) -> Path:
        return self.run_dir / FOLDER / f"{self.name}.json"

    def read(self) -> dict[int, list[str]]:
        """The texts by the number of updates; nothing where none were kept."""
        try:
            kept = json.loads(self.path.read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            return {}
        return {int(step): texts for step, texts in kept.items()}

    def keep(self, step: int, texts: Sequence[str]) -> None:
        """Keep the texts after ``step`` updates, beside those of other steps."""
        kept = {str(key): value for key, value in self.read().items()} | {str(step): [*texts]}
        replace_samples(self.path, json.dumps(kept, ensure_ascii=False, indent=1))

    def write_table(self, heads: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Write ``samples.md``."""
        self.path.parent.mkdir(exist_ok=True)
        lines = ["# Samples", "", *markdown_table(heads, rows)]
        table = self.path.with_name("samples.md")
        table.write_text("\n".join(lines) + "\n", encoding="utf-8")
