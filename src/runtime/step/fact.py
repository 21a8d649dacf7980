"""What a recipe notes, as JSON can hold it: checked where the recipe says it.

A record is written when the work is done; what it cannot hold must not come to light then.
"""

from __future__ import annotations

import math
import os
from collections.abc import Collection, Mapping
from datetime import date, time
from typing import Any

from nemotron_style.runtime.errors import Problem, StepFailed

MAX_VALUES = 100_000
MAX_CHARACTERS = 1_000_000
MAX_DEPTH = 50
MAX_BITS = 1024  # of a whole number; as far as a float reaches


def plain_fact(value: Any, *, where: str, key: str) -> Any:
    """``value`` as JSON can hold it.

    Paths, dates, ``nan`` and ``inf`` become text, tuples, sets and arrays lists, numbers of numpy
    and torch plain numbers. Raises StepFailed, naming ``key``, for anything else, and for what is
    too large for a record.
    """
    return _Writer(where).write(value, key, depth=0)


def plain_number(number: Any, *, where: str = "figures", key: str = "") -> int | float | str:
    """A number as JSON can hold it; tensors of one element count as numbers.

    Raises StepFailed, naming ``key``, for what ``float()`` does not take.
    """
    if isinstance(number, int) and number.bit_length() <= MAX_BITS:
        return number
    try:
        value = float(number)
    except (TypeError, ValueError, OverflowError, RuntimeError) as error:
        what, got = f"is not a number: {error}", type(number).__name__
        raise StepFailed(Problem(where=where, key=key, what=what, got=got)) from error
    return value if math.isfinite(value) else str(value)


class _Writer:
    """Counts what it has written, over the whole of one fact."""

    def __init__(self, where: str) -> None:
        self.where = where
        self.values = self.characters = 0

    def write(self, value: Any, key: str, *, depth: int) -> Any:
        self.values += 1
        if self.values > MAX_VALUES or depth > MAX_DEPTH:
            raise self._refuse(key, "is too large for a record", f"{MAX_VALUES} values at most")
        if value is None or isinstance(value, bool):
            return value
        if isinstance(value, int | float):
            return plain_number(value, where=self.where, key=key)
        if isinstance(value, str | os.PathLike):
            return self._text(os.fspath(value), key)
        if isinstance(value, date | time):
            return value.isoformat()
        if hasattr(value, "tolist") and hasattr(value, "shape"):  # of numpy or torch
            return self._array(value, key, depth)
        if isinstance(value, Mapping):
            return {
                self._text(str(name), key): self.write(item, f"{key}.{name}", depth=depth + 1)
                for name, item in value.items()
            }
        if isinstance(value, Collection) and not isinstance(value, bytes | bytearray | memoryview):
            # A set has another order in each process.
            items = sorted(value, key=repr) if isinstance(value, set | frozenset) else value
            return [
                self.write(item, f"{key}[{index}]", depth=depth + 1)
                for index, item in enumerate(items)
            ]
        raise self._refuse(key, "cannot be kept in a record", got=type(value).__name__)

    def _array(self, value: Any, key: str, depth: int) -> Any:
        if math.prod(value.shape) > MAX_VALUES:
            raise self._refuse(key, "is too large for a record", f"{MAX_VALUES} values at most")
        plain = value.tolist()
        if hasattr(plain, "tolist"):  # numpy's longdouble stays what it is
            plain = float(plain)
        return self.write(plain, key, depth=depth)

    def _text(self, value: str | bytes, key: str) -> str:
        # A path may hold bytes that are no text, which a record could not be written with.
        text = os.fsdecode(value).encode("utf-8", "backslashreplace").decode()
        self.characters += len(text)
        if self.characters > MAX_CHARACTERS:
            limit = f"{MAX_CHARACTERS} characters at most"
            raise self._refuse(key, "is too large for a record", limit)
        return text

    def _refuse(self, key: str, what: str, allowed: str = "", got: str = "") -> StepFailed:
        allowed = allowed or "numbers, text, paths, dates, and tables and lists of them"
        fix = "write what is large into a file of the output, and anything else as text"
        return StepFailed(
            Problem(where=self.where, key=key, what=what, got=got, allowed=allowed, fix=fix)
        )
