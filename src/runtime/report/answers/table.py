"""Answers as a page shows them: tables of rows, each with what judged it.

Whatever has a table, an evaluation or the folder of a run, makes these; the page knows no other
form. Texts are cut and secrets in them masked before they get here.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from nemotron_style.runtime.secrets.redact import redact
from nemotron_style.runtime.units import format_number

SHOWN = 12
"""Rows of a table."""
MOST_TEXT = 2000
"""Characters of a prompt or an answer."""
CUT = " […]"
UNFINISHED = "(did not finish)"

Row = Mapping[str, Any]

BY_ADVANTAGE = (("ap2", "training makes it more likely"), ("an2", "training makes it less likely"))
BY_LOSS = (("counted", "the loss counts it"), ("uncounted", "the loss leaves it out"))


@dataclass(frozen=True)
class Remark:
    """What a judge said: ``head`` in a line, ``words`` at length, "" where they were not kept."""

    head: str
    words: str = ""


@dataclass(frozen=True)
class Share:
    """A named share of a whole, from 0 to 1, drawn as a bar."""

    name: str
    value: float


@dataclass(frozen=True)
class Cell:
    """One answer, cut to :data:`MOST_TEXT`; ``tone`` is ``better``, ``worse`` or "".

    ``strength`` from -3 to 3 colours the text by the advantage of its tokens. ``pieces`` are its
    tokens, each with whether the loss counts it.
    """

    text: str
    notes: tuple[str, ...] = ()
    tone: str = ""
    strength: int = 0
    pieces: tuple[tuple[str, bool], ...] = ()
    shares: tuple[Share, ...] = ()
    remarks: tuple[Remark, ...] = ()


@dataclass(frozen=True)
class AnswerRow:
    """A prompt and the answers to it; ``verdict`` is who was preferred, in words."""

    prompt: str
    cells: tuple[Cell, ...]
    verdict: str = ""
    tone: str = ""
    detail: str = ""
    remarks: tuple[Remark, ...] = ()


@dataclass(frozen=True)
class Table:
    """Answers of one source; ``heads`` name the columns of answers, ``note`` what was chosen.

    ``first`` names the first column. Where all rows answer one prompt, ``prompt`` has it.
    ``legend`` explains colours: pairs of a class of the style sheet and what it means.
    """

    title: str
    source: str
    heads: tuple[str, ...]
    rows: tuple[AnswerRow, ...]
    note: str
    first: str = "prompt"
    prompt: str = ""
    legend: tuple[tuple[str, str], ...] = ()

    @property
    def has_verdicts(self) -> bool:
        """Whether a column says who was preferred."""
        return any(row.verdict for row in self.rows)


def shade(advantage: float, scale: float) -> int:
    """An advantage as one of seven shades, from -3 to 3; ``scale`` is the largest one shown."""
    if not (scale and advantage) or math.isnan(advantage):
        return 0
    size = max(1, min(3, round(3 * abs(advantage) / scale)))  # small ones have a sign too
    return size if advantage > 0 else -size


def cut_text(text: object) -> str:
    """A text without secrets, of at most :data:`MOST_TEXT` characters; it says where it was cut."""
    plain = redact(str(text))
    return plain if len(plain) <= MOST_TEXT else plain[:MOST_TEXT] + CUT


def show_answer(text: object) -> str:
    """The text of an answer; what says that there is none where it did not finish."""
    return UNFINISHED if text is None else cut_text(text)


def last_message(messages: object) -> str:
    """The question of a conversation: what was said last."""
    last = messages[-1] if isinstance(messages, list) and messages else {}
    return str(last.get("content", "")) if isinstance(last, Mapping) else str(last)


def as_number(value: object) -> float:
    """A number of a row; 0 for what is none."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if is_number else 0.0  # type: ignore[arg-type]


def signed(value: float) -> str:
    """A number with its sign, a zero without one."""
    text = format_number(value + 0.0)
    return f"+{text}" if value > 0 else text


def read_judged(judged: object) -> Iterator[tuple[str, str, Row]]:
    """What a judge said of an answer beside another: both scores, and all that was written down."""
    for each in judged if isinstance(judged, list) else []:
        scores = each.get("scores") if isinstance(each, Mapping) else None
        if isinstance(scores, list):
            own, other = (format_number(as_number(score)) for score in scores[:2])
            yield own, other, each


def name_attributes(values: object) -> str:
    """Attributes as text: ``helpfulness 4, verbosity 1``."""
    known = values if isinstance(values, Mapping) else {}
    return ", ".join(f"{name} {format_number(value)}" for name, value in known.items())
