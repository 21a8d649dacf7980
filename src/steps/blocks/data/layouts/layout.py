"""What a layout of rows is: how it is recognised, and how it becomes a row of our own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Row = Mapping[str, Any]
Use = Literal["training", "prompts", "ratings", "comparisons"]
"""What a step wants of a row: an answered conversation, one that waits for its answer, what an
answer is worth (a rating, or a pair), or two answers to compare."""

OwnRow = dict[str, Any]
"""A row of ``training_jsonl``, ``prompts_jsonl``, ``rated_jsonl`` or ``comparison_jsonl``."""


@dataclass(frozen=True)
class Layout:
    """One way to write a row.

    ``fits`` recognises it by its columns; a column that is null is not there. ``read`` makes a
    row of our own of it, adds to ``unused`` what inside of its columns it does not read, and
    raises InputError for a row that it cannot read rightly. ``columns`` are those it may read, or
    None where ``read`` names the others itself; the others are left out.
    """

    name: str
    uses: frozenset[Use]
    columns: frozenset[str] | None
    fits: Callable[[Row], bool]
    read: Callable[[Row, set[str]], OwnRow]
    example: str
    last_resort: bool = field(default=False, kw_only=True)
    """Taken only where no other layout fits: such a column stands beside others, too."""


@dataclass(frozen=True)
class Refused:
    """A layout that is known and not read, with the reason and what to do instead."""

    name: str
    fits: Callable[[Row], bool]
    why: str
    fix: str
    example: str
    always: bool = field(default=False, kw_only=True)
    """Refused although another layout fits, too: what it leaves open would be overlooked."""
