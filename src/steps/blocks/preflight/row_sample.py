"""How many rows a file has, and what the first of them are like."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from nemotron_style.runtime.errors import InputError, Problem
from nemotron_style.steps.blocks.data.conversation import (
    parse_conversation,
    parse_prompt_row,
)
from nemotron_style.steps.blocks.data.files.row_file import find_files, iterate_rows
from nemotron_style.steps.blocks.data.layouts.layout import Row, Use
from nemotron_style.steps.blocks.data.layouts.table import recognise
from nemotron_style.steps.blocks.data.rated_row import RatedRow, parse_rated
from nemotron_style.steps.blocks.preflight.memory import show_count
from nemotron_style.steps.blocks.settings.row_config import RowReading

if TYPE_CHECKING:
    from nemotron_style.steps.blocks.data.chat.interface import Chat

LOOKED_AT = 64
MOST_BYTES = 1 << 30
"""Of files whose rows are counted; larger ones are left alone."""
MOST_WHOLE_BYTES = 32 << 20
"""Of files that are read whole to be counted."""


@dataclass(frozen=True)
class RowSample:
    """``rows`` of a data set (None: not counted), the ``lengths`` in tokens of the first ones.

    ``problems`` say why rows cannot be read; ``seen`` were looked at.
    """

    rows: int | None
    seen: int
    lengths: tuple[int, ...] = ()
    problems: tuple[Problem, ...] = ()

    @property
    def longest(self) -> int:
        """Tokens of the longest row that was looked at; 0 where none was."""
        return max(self.lengths, default=0)

    def describe(self, slot: str) -> str:
        """A note: rows, and about how many tokens they hold."""
        counted = f"{slot}: {self.rows:,} rows" if self.rows is not None else f"{slot}: rows"
        if not self.lengths:
            return counted
        mean = sum(self.lengths) / len(self.lengths)
        about = f"about {mean:,.0f} tokens each, the longest of {len(self.lengths)} has "
        about += f"{self.longest:,}"
        total = f", about {show_count(mean * self.rows)} tokens" if self.rows else ""
        return f"{counted}{total} ({about})"


def look_at_rows(
    path: Path, use: Use | None, *, settings: RowReading | None = None, chat: Chat | None = None
) -> RowSample:
    """The rows of a file or a folder: how many, whether they are read, and how long they are.

    Rows of no known ``use`` are only counted. With bad rows to be left out, some bad ones are no
    problem. Lengths need the ``chat`` format.
    """
    settings = settings or RowReading()
    try:
        rows = count_rows(find_files(path))
        seen = list(islice(iterate_rows(path), LOOKED_AT))
    except InputError as error:
        return RowSample(None, 0, problems=tuple(error.problems))
    lengths: list[int] = []
    problems: list[Problem] = []
    bad = 0
    for where, row in seen if use else ():
        try:
            if isinstance(row, InputError):
                raise row
            lengths += _measure(row, use, settings, chat)
        except InputError as error:
            bad += 1
            problems += [replace(one, where=where) for one in error.problems]
    if settings.on_bad_row == "skip" and bad < len(seen):
        problems = []
    elif bad and bad == len(seen):
        problems = problems[:1]  # all of them are of a kind that is not read
    if not seen:
        problems.append(Problem(where=str(path), what="the file holds no rows"))
    return RowSample(rows, len(seen), tuple(lengths), tuple(problems))


def _measure(row: Row, use: Use, settings: RowReading, chat: Chat | None) -> list[int]:
    """Tokens of the longest text that a step makes of a row, with a ``chat`` format.

    Raises InputError for a row that the steps refuse.
    """
    own = recognise(row, use, settings.layout).read(row, set())
    if use == "ratings":
        rated = parse_rated(own)
        sides = (
            [rated.conversation] if isinstance(rated, RatedRow) else [rated.chosen, rated.rejected]
        )
        return [max(len(chat.conversation_ids(side)) for side in sides)] if chat else []
    if use == "prompts":
        prompt = parse_prompt_row({name: own[name] for name in own if name != "principle"})
        return [len(chat.prompt_ids(prompt))] if chat else []
    conversation = parse_conversation(own)
    return [len(chat.example(conversation).ids)] if chat else []


def count_rows(files: Sequence[Path]) -> int | None:
    """Rows of files, or at most a few more; None where counting would take long."""
    counts = [_count(file) for file in files]
    return None if None in counts else sum(count or 0 for count in counts)


def _count(file: Path) -> int | None:
    name, size = file.name.lower(), file.stat().st_size
    if name.endswith(".parquet"):
        return _count_parquet(file)
    if name.endswith((".gz", ".json")):
        return sum(1 for _ in iterate_rows(file)) if size <= MOST_WHOLE_BYTES else None
    if size > MOST_BYTES:
        return None
    lines, last = 0, b"\n"
    with file.open("rb") as stream:
        while chunk := stream.read(1 << 20):
            lines += chunk.count(b"\n")
            last = chunk[-1:]
    return lines + (last != b"\n")


def _count_parquet(file: Path) -> int | None:
    try:
        from pyarrow.parquet import read_metadata
    except ImportError:
        return None
    try:
        return int(read_metadata(file).num_rows)
    except (OSError, ValueError):  # ArrowInvalid is one
        return None
