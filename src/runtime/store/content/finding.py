"""What was found out about a file that two artifacts do not have in common."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from nemotron_style.runtime.errors import shorten
from nemotron_style.runtime.validation import flatten

MOST_KEYS = 4
VALUE_WIDTH = 28


@dataclass(frozen=True)
class Finding:
    """One file (or one set of weights) that differs.

    ``summary`` is one line, ``examples`` are lines that show some of the differences, and ``facts``
    say the same as plain data.
    """

    path: str
    summary: str
    examples: tuple[str, ...] = ()
    facts: dict[str, Any] = field(default_factory=dict)


def count(number: int, noun: str) -> str:
    """``1 row``, ``2 rows``."""
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


def describe_keys(left: Any, right: Any, *, most: int = MOST_KEYS) -> list[str]:
    """The first keys in which two JSON values differ, with both values, shortened."""
    ours, theirs = (_by_key(value) for value in (left, right))
    keys = [key for key in {**ours, **theirs} if _write(ours, key) != _write(theirs, key)]
    shown = [
        f"{key}: {_shorten(_write(ours, key))} -> {_shorten(_write(theirs, key))}"
        for key in keys[:most]
    ]
    more = [f"and {count(len(keys) - most, 'more key')}"] if len(keys) > most else []
    return [*shown, *more]


def differing_keys(left: Any, right: Any) -> list[str]:
    """The keys in which two JSON values differ."""
    ours, theirs = (_by_key(value) for value in (left, right))
    return [key for key in {**ours, **theirs} if _write(ours, key) != _write(theirs, key)]


def show_row(row: Any) -> str:
    """A row as one line that fits a screen."""
    return shorten(json.dumps(row, ensure_ascii=False, default=str), 2 * VALUE_WIDTH)


def _by_key(value: Any) -> dict[str, Any]:
    if isinstance(value, list):
        value = {f"[{index}]": item for index, item in enumerate(value)}
    if not isinstance(value, dict):
        return {"": value}
    flat = flatten(value)
    lists = {key: item for key, item in flat.items() if isinstance(item, list) and item}
    for key, items in lists.items():
        del flat[key]
        for index, item in enumerate(items):
            flat |= {f"{key}[{index}].{inner}".rstrip("."): v for inner, v in _by_key(item).items()}
    return flat


def _write(values: dict[str, Any], key: str) -> str:
    if key not in values:
        return "(absent)"
    return json.dumps(values[key], sort_keys=True, ensure_ascii=False, default=str)


def _shorten(text: str) -> str:
    return shorten(text, VALUE_WIDTH)
