"""How a row is refused, and how its values are shown."""

from __future__ import annotations

import json
import sys
from typing import NoReturn

from nemotron_style.runtime.errors import InputError, Problem

LARGEST = sys.float_info.max


def refuse(what: str, **details: str) -> NoReturn:
    """Refuse the row at hand; the reader of the file adds the file and the line.

    ``details`` are fields of :class:`Problem`: ``key``, ``got``, ``allowed``, ``fix``.
    """
    raise InputError(Problem(what=what, **details))


def is_number(value: object) -> bool:
    """Whether a JSON value is a number that float64 can hold: no truth value, NaN or infinity."""
    is_plain = isinstance(value, int | float) and not isinstance(value, bool)
    return is_plain and -LARGEST <= value <= LARGEST  # an integer may have any length


def brief(value: object, width: int = 60) -> str:
    """``value`` as it would stand in JSON, cut to ``width`` characters for a message."""
    text = json.dumps(value, ensure_ascii=False, default=repr)
    return text if len(text) <= width else f"{text[: width - 1]}…"
