"""The numbers of a run over its steps, as charts: what was trained on and what was held out."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup

from nemotron_style.runtime.report.drawing.figures import Series, draw_lines
from nemotron_style.runtime.step.metrics import parse_lines

SHOWN = 6
"""Charts that stand in the page at once; the others can be opened."""
MOST_CHARTS = 60
MOST_BYTES = 8 << 20
"""Of a ``metrics.jsonl`` that are read: about half a second."""

_PREFIX = re.compile(r"^(train|validation)[_/]")
_LAST = re.compile(r"^timing|seconds|per_second|lr$|learning_rate|_num_|^num_|clock")
_SPREAD = re.compile(r"(min|max|median|std|stddev|std_in_group)$")
_FIRST = (
    r"^reward$|win_rate|truth|kl_to|loss|distance|reward|hit_rate|accuracy|drift|kept|effective|kl"
    r"|entropy|tokens"
)

_WORDS = {"": "training", "train": "training", "validation": "held out"}

Parts = dict[str, list[tuple[float, float]]]
"""The points of a figure, apart for what was trained on and what was held out."""


@dataclass(frozen=True)
class Curves:
    """Charts of a run; ``constant`` are the figures that never change, by name."""

    charts: tuple[Markup, ...]
    constant: dict[str, float]
    steps: int
    left_out: tuple[str, ...] = ()
    sampled: int = 1


def read_curves(path: Path) -> Curves:
    """The curves of a ``metrics.jsonl``; without any when it is not there."""
    lines, every = read_sampled(path)
    return draw_curves(lines, sampled=every)


def read_sampled(path: Path, most: int = MOST_BYTES) -> tuple[list[dict[str, Any]], int]:
    """The lines of a ``metrics.jsonl``, and of how many one was read.

    Of a very large file, every line that was measured on held-out rows is read, and of the others
    one in so many.
    """
    try:
        every = math.ceil(os.path.getsize(path) / most) or 1
        with open(path, "rb") as file:
            kept = [
                line
                for number, line in enumerate(file)
                if number % every == 0 or b'"validation' in line
            ]
        return parse_lines(b"".join(kept).decode("utf-8", "replace")), every
    except OSError:
        return [], 1


def draw_curves(lines: list[dict[str, Any]], *, sampled: int = 1) -> Curves:
    """A chart for each figure; training and held-out rows share one."""
    groups: dict[str, Parts] = {}
    for key, points in collect_points(lines).items():
        part = _PREFIX.match(key)
        groups.setdefault(_PREFIX.sub("", key), {})[part[1] if part else ""] = points
    ends = {end for name in groups for end in (f"{name}_low", f"{name}_high") if end in groups}
    values = {name: {y for points in groups[name].values() for _, y in points} for name in groups}
    constant = {
        name: min(seen) for name, seen in values.items() if len(seen) == 1 and name not in ends
    }
    names = sorted((name for name in groups if name not in constant.keys() | ends), key=rank_figure)
    charts = [_draw(name, groups) for name in names[:MOST_CHARTS]]
    left_out = tuple(names[MOST_CHARTS:])
    return Curves(tuple(filter(None, charts)), constant, len(lines), left_out, sampled)


def collect_points(lines: Iterable[Mapping[str, Any]]) -> Parts:
    """The points of each figure, by its whole name."""
    points: Parts = {}
    for line in lines:
        for key, value in line.items():
            if key != "step" and (number := _read_number(value)) is not None:
                points.setdefault(key, []).append((line["step"], number))
    return points


def _read_number(value: object) -> float | None:
    """A figure; ``"nan"`` and ``"inf"`` are how a metrics file writes what JSON has no word for."""
    if value in ("nan", "inf", "-inf"):
        return float(str(value))
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if is_number else None  # type: ignore[arg-type]


def _draw(name: str, groups: Mapping[str, Parts]) -> Markup:
    """The chart of a figure; ``<name>_low`` and ``<name>_high`` are its interval."""
    series = []
    for part in ("", "train", "validation"):
        if points := groups[name].get(part):
            low, high = (groups.get(f"{name}_{end}", {}).get(part, []) for end in ("low", "high"))
            band = tuple((a, b) for (_, a), (_, b) in zip(low, high, strict=False))
            band = band if len(band) == len(points) else ()
            label = _WORDS[part] if part or len(groups[name]) > 1 else name.rpartition("/")[2]
            label = label.replace("_", " ")
            series.append(Series(label, tuple(points), band, style=int(part == "validation")))
    return draw_lines(name.replace("_", " "), series)


def rank_figure(name: str) -> tuple[bool, bool, int]:
    """What tells most about a run first; where time went and how fast it was come last."""
    words = enumerate(_FIRST.split("|"))
    order = next((at for at, word in words if re.search(word, name)), 99)
    return bool(_LAST.search(name)), bool(_SPREAD.search(name)), order
