"""What is found in a file of rows: counts, lengths, what repeats, and the first rows."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from nemotron_style.runtime.errors import InputError
from nemotron_style.steps.blocks.data.chat.interface import Chat
from nemotron_style.steps.blocks.data.conversation import (
    Conversation,
    parse_conversation,
    parse_messages,
    parse_prompt_row,
)
from nemotron_style.steps.blocks.data.files.row_file import iterate_rows
from nemotron_style.steps.blocks.data.layouts.layout import OwnRow, Use
from nemotron_style.steps.blocks.data.layouts.reader import ReadReport, RowReader
from nemotron_style.steps.blocks.data.layouts.table import USES, recognise
from nemotron_style.steps.blocks.data.rated_row import PairRow, parse_rated
from nemotron_style.steps.blocks.settings.row_config import RowReading
from nemotron_style.steps.data.inspect.config import Data
from nemotron_style.steps.data.inspect.rendering import Piece, render

PROBED = 100
"""Rows by which it is decided what a file can be read for."""

SHOWN = 10
_ORDER: tuple[Use, ...] = ("training", "ratings", "comparisons", "prompts")


@dataclass
class Inspection:
    """What was found. ``shown`` are the first rows, each as its conversations in pieces.

    ``repeats`` are numbers of rows (from 1), each with that of the row that it repeats.
    """

    use: Use
    uses: Sequence[Use]
    report: ReadReport
    limit: int | None = None
    characters: list[int] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    trained: list[int] = field(default_factory=list)
    turns: list[int] = field(default_factory=list)
    repeats: list[tuple[int, int]] = field(default_factory=list)
    repeated_prompts: int = 0
    shown: list[list[list[Piece]]] = field(default_factory=list)
    too_long: list[int] = field(default_factory=list)

    def facts(self) -> dict[str, Any]:
        """The figures as JSON."""
        lengths = {"characters": self.characters, "tokens": self.tokens, "trained": self.trained}
        return {
            "use": self.use,
            "uses": list(self.uses),
            **self.report.facts(),
            "lengths": {name: percentiles(each) for name, each in lengths.items() if each},
            "turns": percentiles(self.turns),
            "repeated_rows": len(self.repeats),
            "repeated_prompts": self.repeated_prompts,
            "limit": self.limit,
            "rows_above_limit": len(self.too_long),
        }


PERCENTILES = (0, 10, 50, 90, 99, 100)


def percentiles(numbers: Sequence[int]) -> dict[str, int]:
    """The numbers below which so many percent lie; 0 and 100 are the least and the largest."""
    ordered = sorted(numbers)
    last = len(ordered) - 1
    return {str(share): ordered[round(share / 100 * last)] for share in PERCENTILES if ordered}


def find_uses(path: Path, layout: str | None) -> list[Use]:
    """What the first rows of a file can be read for, the likeliest first.

    Raises InputError when it is nothing: the first row's problem for training.
    """
    found = dict.fromkeys(_ORDER, 0)
    problem: InputError | None = None
    for where, row in islice(iterate_rows(path), PROBED):
        if isinstance(row, InputError):
            continue
        for use in USES:
            try:
                recognise(row, use, layout)
                found[use] += 1
            except InputError as error:
                problem = problem or InputError(f"{where}: {error}")
    uses = sorted((use for use in _ORDER if found[use]), key=lambda use: -found[use])
    if not uses and problem:
        raise problem
    return uses or ["training"]


def inspect_rows(
    path: Path, data: Data, *, chat: Chat | None, limit: int | None, shown: int
) -> Inspection:
    """Read a file for ``data.use`` (None: the likeliest), leaving out what is bad, and count."""
    uses = find_uses(path, data.layout) if data.use is None else [data.use]
    settings = RowReading(layout=data.layout, on_bad_row="skip", max_bad_rows=float(2**53))
    reader = RowReader(uses[0], settings, "data")
    found = Inspection(uses[0], uses, reader.report, limit)
    seen: dict[bytes, int] = {}
    prompts: set[bytes] = set()

    def parse(row: OwnRow) -> None:
        conversations = _conversations(row, found.use)
        pieces = [render(each, chat, found.use, data.train_on) for each in conversations]
        number = reader.report.rows
        first = seen.setdefault(_digest(row), number)
        if first != number:
            found.repeats.append((number, first))
        else:
            prompt = _digest([conversations[0].system, *map(str, conversations[0].turns)])
            found.repeated_prompts += prompt in prompts
            prompts.add(prompt)
        _count(found, conversations, pieces, number)
        if len(found.shown) < shown:
            found.shown.append(pieces)

    try:
        reader.read(path, parse)
    except InputError:
        if not reader.report.bad:
            raise  # the file itself cannot be read; bad rows are what the report is about
    found.report = reader.report
    return found


def _count(
    found: Inspection,
    conversations: Sequence[Conversation],
    pieces: Sequence[Sequence[Piece]],
    number: int,
) -> None:
    found.turns.append(max(len(each.turns) + (each.response is not None) for each in conversations))
    found.characters.append(max(sum(len(piece.text) for piece in each) for each in pieces))
    if any(piece.tokens for each in pieces for piece in each):
        tokens = max(sum(piece.tokens for piece in each) for each in pieces)
        found.tokens.append(tokens)
        trained = sum(piece.tokens for each in pieces for piece in each if piece.trained)
        found.trained.append(trained)
        if found.limit is not None and tokens > found.limit:
            found.too_long.append(number)


def _conversations(row: OwnRow, use: Use) -> list[Conversation]:
    """The conversations of a row: one, or both sides of a pair."""
    if use == "prompts":
        return [parse_prompt_row(row)]
    if use == "comparisons":
        return [parse_messages(row["messages"])]
    if use == "training":
        return [parse_conversation(row)]
    rated = parse_rated(row)
    if isinstance(rated, PairRow):
        return [rated.chosen, rated.rejected]
    return [rated.conversation]


def _digest(value: Any) -> bytes:
    text = json.dumps(value, ensure_ascii=False, sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=16).digest()
