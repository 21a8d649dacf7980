"""The verdict in a judge's answer: two scores and a ranking, or a reason why there is none.

A verdict is looked for where NeMo-Gym looks for it: in a JSON object in a fenced ``json`` block or
anywhere else, or in the part of it under ``overall``. What counts as a verdict differs. NeMo-Gym
takes 3.0 for a missing score, accepts scores of 42, "4" and true, chooses one of several objects,
and takes a middling verdict where there is none. Here a verdict is whole and in range, and several
in one text must be equal: one of them may be a draft, or a quotation from an answer that tries to
judge itself.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from nemotron_style.steps.blocks.http.error import shorten

SCORES = (1.0, 5.0)
RANKINGS = (1.0, 6.0)
EVEN = 3.5
KEYS = ("score_1", "score_2", "ranking")
MOST_STRAYS = 64
"""Open braces without an end that are skipped. From each, the rest of the text is read again."""

_FENCED = re.compile(r"```json(.*?)```", re.IGNORECASE | re.DOTALL)
_MARKS = re.compile(r'[{}"\\]')


@dataclass(frozen=True)
class Verdict:
    """Scores from 1 to 5, higher is better; ``ranking`` from 1 (the first is much better) to 6.

    ``ranking`` decides between equal scores alone, and is :data:`EVEN` where it was not given.
    ``words`` is the answer that it stood in, "" where that was not kept; it decides nothing.
    """

    score_1: float
    score_2: float
    ranking: float
    words: str = field(default="", compare=False, repr=False)

    @property
    def numbers(self) -> dict[str, float]:
        """What was judged, without the words."""
        return {"score_1": self.score_1, "score_2": self.score_2, "ranking": self.ranking}

    @property
    def is_tie(self) -> bool:
        return self.score_1 == self.score_2

    @property
    def preference(self) -> float:
        """Positive where the first answer is preferred, 0 where neither is; a ranking of 1 to 3
        prefers the first of two equal scores, one of 4 to 6 the second."""
        return EVEN - self.ranking if self.is_tie else self.score_1 - self.score_2


def read_verdict(text: str) -> Verdict:
    """The verdict of a judge's final answer. Raises ValueError, saying what is wrong, for none.

    Scores and ranking are JSON numbers within their ranges. The ranking may be left out where the
    scores differ, because it decides between equal scores alone.
    """
    verdicts = {_check_verdict(each) for each in iter_objects(text)}
    if not verdicts:
        raise ValueError("there is no JSON object with a score in it")
    if len(verdicts) > 1:
        raise ValueError(f"there are {len(verdicts)} verdicts, and they differ")
    return verdicts.pop()


def iter_objects(text: str) -> Iterator[Mapping[str, Any]]:
    """The JSON objects with a key of a verdict, in the order in which NeMo-Gym tries them.

    First those of fenced blocks, from the first on, then those of the whole text (these again),
    from the last on.
    """
    for block in _FENCED.findall(text):
        yield from _parse(_braced(block))
    yield from _parse(reversed(list(_braced(text))))


def _check_verdict(fields: Mapping[str, Any]) -> Verdict:
    score_1, score_2 = (_number(fields, key, SCORES) for key in KEYS[:2])
    if "ranking" not in fields and score_1 != score_2:
        return Verdict(score_1, score_2, EVEN)
    return Verdict(score_1, score_2, _number(fields, "ranking", RANKINGS))


def _parse(pieces: Iterator[str]) -> Iterator[Mapping[str, Any]]:
    for piece in pieces:
        try:
            fields = json.loads(piece)
        except (ValueError, RecursionError):
            continue
        fields = fields["overall"] if isinstance(fields.get("overall"), dict) else fields
        if any(key in fields for key in KEYS):
            yield fields


def _braced(text: str) -> Iterator[str]:
    """The outermost ``{...}`` from left to right; braces within strings do not count."""
    begin, strays = text.find("{"), 0
    while begin >= 0 and strays < MOST_STRAYS:
        end = _end_of_braces(text, begin)
        if end is None:
            strays += 1
            begin = text.find("{", begin + 1)
        else:
            yield text[begin:end]
            begin = text.find("{", end)


def _end_of_braces(text: str, begin: int) -> int | None:
    """The index behind the brace that closes the one at ``begin``, or None."""
    depth, quoted, escaped = 0, False, -1
    for mark in _MARKS.finditer(text, begin):
        index, sign = mark.start(), mark.group()
        if index == escaped:
            continue
        if sign == "\\":
            escaped = index + 1 if quoted else -1
        elif sign == '"':
            quoted = not quoted
        elif not quoted:
            depth += 1 if sign == "{" else -1
            if depth == 0:
                return index + 1
    return None


def _number(fields: Mapping[str, Any], key: str, allowed: tuple[float, float]) -> float:
    low, high = allowed
    value = fields.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{key} is no number: {shorten(value)}")
    if not low <= value <= high:  # NaN too
        raise ValueError(f"{key} is not from {low:g} to {high:g}: {shorten(value)}")
    return float(value)
