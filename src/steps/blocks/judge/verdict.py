"""What a judge said, read from its text: two scores and a ranking, or nothing.

Where a verdict stands in a text is NeMo-Gym's: a JSON object in a fenced ``json`` block or anywhere
else, or the part of it under ``overall``. What counts as a verdict is not. There a missing score is
3.0, scores of 42, "4" and true are taken, of several objects one is chosen, and a text without any
is a middling verdict. Here a verdict is whole and in range, and a text that holds several must say
the same in each: one of them may be a draft, or a quotation from an answer that tries to judge
itself.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

SCORES = (1.0, 5.0)
RANKINGS = (1.0, 6.0)
EVEN = 3.5
KEYS = ("score_1", "score_2", "ranking")
MOST_STRAYS = 64
"""Braces without an end that are stepped over: the text is read again from each."""

_FENCED = re.compile(r"```json(.*?)```", re.IGNORECASE | re.DOTALL)
_MARKS = re.compile(r'[{}"\\]')


@dataclass(frozen=True)
class Verdict:
    """Scores from 1 to 5, higher is better; ``ranking`` from 1 (the first is much better) to 6.

    ``ranking`` decides between equal scores alone, and is :data:`EVEN` where it was not given.
    """

    score_1: float
    score_2: float
    ranking: float

    @property
    def is_tie(self) -> bool:
        return self.score_1 == self.score_2

    @property
    def preference(self) -> float:
        """Positive where the first answer is preferred, after the ranking has had its say."""
        return EVEN - self.ranking if self.is_tie else self.score_1 - self.score_2


def read_verdict(text: str) -> Verdict:
    """The verdict of a judge's final answer. Raises ValueError, saying what is wrong, for none.

    Scores and ranking are JSON numbers within their ranges. The ranking may be left out where the
    scores differ, because then it has no say.
    """
    found = {_read(each) for each in iter_objects(text)}
    if not found:
        raise ValueError("there is no JSON object with a score in it")
    if len(found) > 1:
        raise ValueError(f"there are {len(found)} verdicts, and they differ")
    return found.pop()


def read_gym_verdict(
    text: str, *, default_score: float = 3.0, default_ranking: float = EVEN
) -> Verdict | None:
    """The verdict that NeMo-Gym 0.7.0 reads, None where it falls back on its defaults.

    For comparisons with NeMo-Gym alone: a missing value is a default, nothing is out of range,
    and the first object that can be read counts, whatever stood before it.
    """
    defaults = dict(zip(KEYS, (default_score, default_score, default_ranking), strict=True))
    for found in iter_objects(text):
        try:
            numbers = [float(found.get(key, defaults[key])) for key in KEYS]
        except (TypeError, ValueError, OverflowError):
            continue
        if all(map(math.isfinite, numbers)):
            return Verdict(*numbers)
    return None


def iter_objects(text: str) -> Iterator[Mapping[str, Any]]:
    """The JSON objects that hold a verdict's key; the first is the one that NeMo-Gym takes.

    Those of fenced blocks from the first on, then all of the text (these again) from the last.
    """
    for block in _FENCED.findall(text):
        yield from _verdicts(_braced(block))
    yield from _verdicts(reversed(list(_braced(text))))


def _read(told: Mapping[str, Any]) -> Verdict:
    score_1, score_2 = (_number(told, key, SCORES) for key in KEYS[:2])
    if "ranking" not in told and score_1 != score_2:
        return Verdict(score_1, score_2, EVEN)
    return Verdict(score_1, score_2, _number(told, "ranking", RANKINGS))


def _verdicts(pieces: Iterator[str]) -> Iterator[Mapping[str, Any]]:
    for piece in pieces:
        try:
            told = json.loads(piece)
        except (ValueError, RecursionError):
            continue
        told = told["overall"] if isinstance(told.get("overall"), dict) else told
        if any(key in told for key in KEYS):
            yield told


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
    """Behind the brace that closes the one at ``begin``, or None."""
    depth, quoted, escaped = 0, False, -1
    for mark in _MARKS.finditer(text, begin):
        place, sign = mark.start(), mark.group()
        if place == escaped:
            continue
        if sign == "\\":
            escaped = place + 1 if quoted else -1
        elif sign == '"':
            quoted = not quoted
        elif not quoted:
            depth += 1 if sign == "{" else -1
            if depth == 0:
                return place + 1
    return None


def _number(found: Mapping[str, Any], key: str, allowed: tuple[float, float]) -> float:
    low, high = allowed
    value = found.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float):
        _refuse(key, value, "is no number")
    if not low <= value <= high:  # NaN too
        _refuse(key, value, f"is not from {low:g} to {high:g}")
    return float(value)


def _refuse(key: str, value: Any, what: str) -> NoReturn:
    told = repr(value)
    raise ValueError(f"{key} {what}: {told if len(told) < 60 else told[:57] + '...'}")
