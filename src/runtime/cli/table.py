"""Plain tables, trees and JSON for the commands that list and show things."""

from __future__ import annotations

import json
import shutil
import sys
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TextIO

from nemotron_style.runtime.errors import Problem


def print_json(document: Any) -> None:
    """One JSON document on standard output."""
    print(json.dumps(document, indent=2, ensure_ascii=False, default=str))


def render_table(rows: Sequence[Sequence[str]], *, header: Sequence[str]) -> str:
    """Aligned columns under a header; on a terminal the last column is cut to its width."""
    lines = [[*header], *([*row] for row in rows)]
    widths = [max(len(line[index]) for line in lines) for index in range(len(header) - 1)]
    room = _room() - sum(widths) - 2 * len(widths)
    text = ""
    for line in lines:
        last = textwrap.shorten(line[-1], max(room, 20), placeholder=" ...") if room else line[-1]
        cells = [cell.ljust(width) for cell, width in zip(line, widths, strict=False)]
        text += "  ".join([*cells, last]).rstrip() + "\n"
    return text


def _room() -> int:
    """Columns of the terminal; a pipe has no limit, and gets whole lines."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else 10_000


def render_tree(branches: Mapping[str, Sequence[str]]) -> str:
    """Two levels: each branch and, below it, its leaves."""
    text = ""
    for name, leaves in branches.items():
        text += f"{name}\n"
        for index, leaf in enumerate(leaves):
            text += f"{'└─' if index == len(leaves) - 1 else '├─'} {leaf}\n"
    return text


def render_pairs(pairs: Iterable[tuple[str, str]], *, indent: str = "  ") -> str:
    """Terms and what they mean, the meanings aligned and wrapped."""
    pairs = list(pairs)
    width = min(max((len(term) for term, _ in pairs), default=0), 40) + 2
    text = ""
    for term, meaning in pairs:
        first = indent + term.ljust(width)
        rest = indent + " " * width
        room = max(min(_room(), 100), len(rest) + 30)
        wrapped = textwrap.wrap(
            meaning, room, initial_indent=first, subsequent_indent=rest, break_on_hyphens=False
        )
        text += "\n".join(wrapped or [first.rstrip()]) + "\n"
    return text


def first_sentence(text: str) -> str:
    """The first sentence of a description, on one line."""
    line = " ".join(text.split())
    head, dot, _ = line.partition(". ")
    return head + dot.strip()


def tell(
    problems: Iterable[Problem], *, label: str = "error", stream: TextIO | None = None
) -> None:
    """Each problem on a line of its own, on standard error unless told otherwise."""
    for problem in problems:
        print(f"{label}: {problem}", file=stream or sys.stderr)
