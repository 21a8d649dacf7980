"""JSON lines in and out: one object a line, every bad row told at once.

A reader of training data that stops at the first bad row makes people mend a file one run at a
time; one that guesses trains on something nobody wrote. This one reads the whole file, counts
every bad row, shows the first ten, and returns rows only when all are good.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from nemotron_style.runtime.errors import InputError, Problem
from nemotron_style.runtime.text_file import MOST_DIGITS, SURROGATE

Row = TypeVar("Row")
SHOWN, LARGEST = 10, sys.float_info.max
LONGEST_LINE = 64 << 20
"""Bytes of a row. A file without line ends would else be read into memory as one."""


def refuse(what: str, **details: str) -> NoReturn:
    """Refuse the row at hand; :func:`read_rows` adds the file and the line.

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


def read_rows(path: str | Path, parse: Callable[[dict[str, Any]], Row]) -> list[Row]:
    """All rows of a JSON lines file, each turned into what ``parse`` returns.

    ``path`` is a file, or a directory (an artifact) that holds exactly one ``.jsonl`` file.
    ``parse`` refuses a row by raising :class:`InputError` (see :func:`refuse`); its problems come
    back with ``file:line``. Blank lines are skipped.

    Raises:
        InputError: the file is missing, empty or not UTF-8, or any row is bad.
    """
    file = find_jsonl(path)
    rows: list[Row] = []
    shown: list[Problem] = []
    bad = 0
    for number, line in _lines(file):
        try:
            rows.append(parse(_decode(line)))
        except InputError as error:
            bad += 1
            if bad <= SHOWN:
                shown += [_placed(problem, file, number) for problem in error.problems]
    if bad > SHOWN:
        shown.append(Problem(where=str(file), what=f"{bad} bad rows in all, {SHOWN} shown"))
    if shown:
        raise InputError(shown)
    if not rows:
        raise InputError(Problem(where=str(file), what="the file holds no rows"))
    return rows


def write_rows(path: Path, rows: Iterable[dict[str, Any]]) -> int:
    """Write rows one a line, keys in their own order, and return how many were written.

    Raises:
        ValueError: a row holds NaN or an infinity, which JSON cannot say.
    """
    count = 0
    with path.open("w", encoding="utf-8", newline="\n") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n")
            count += 1
    return count


def find_jsonl(path: str | Path) -> Path:
    """The file itself, or the only ``.jsonl`` file in a directory."""
    path = Path(path)
    if path.is_file():
        return path
    if not path.is_dir():
        what = "is not a regular file" if path.exists() else "no such file"
        raise InputError(Problem(where=os.fspath(path), what=what))
    found = sorted(path.glob("*.jsonl"))
    if len(found) != 1:
        names = ", ".join(file.name for file in found) or "none"
        raise InputError(
            Problem(
                where=os.fspath(path),
                what="a directory used as data must hold one .jsonl file",
                got=names,
                fix="name the file itself",
            )
        )
    return found[0]


def _lines(file: Path) -> Iterator[tuple[int, bytes]]:
    """Numbered lines that are not blank. Split on LF only: U+2028 may stand inside a string."""
    with file.open("rb") as stream:
        lines = iter(lambda: stream.readline(LONGEST_LINE + 1), b"")
        for number, line in enumerate(lines, start=1):
            if len(line) > LONGEST_LINE:
                what = f"the line has more than {LONGEST_LINE:,} bytes"
                raise InputError(Problem(where=f"{file}:{number}", what=what))
            if line.strip():
                yield number, line


def _decode(line: bytes) -> dict[str, Any]:
    try:
        row = json.loads(
            line.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_refuse_constant
        )
    except UnicodeDecodeError as error:
        refuse("the line is not UTF-8", got=f"byte {line[error.start]:#04x} at {error.start}")
    except json.JSONDecodeError as error:
        refuse(f"the line is not JSON: {error.msg} (column {error.colno})", fix="one object a line")
    except RecursionError:
        refuse("the line is nested too deeply to be read")
    except InputError:  # a ValueError, of _unique
        raise
    except ValueError:  # of int()
        refuse(f"a number has more than {MOST_DIGITS} digits")
    if not isinstance(row, dict):
        refuse("a row must be an object", got=brief(row))
    if b"\\u" in line and SURROGATE.search(json.dumps(row, ensure_ascii=False)):
        refuse("half of a surrogate pair (\\ud800 to \\udfff) is no character")
    return row


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) < len(pairs):
        names = [name for name, _ in pairs]
        twice = sorted({name for name in names if names.count(name) > 1})
        refuse("a key is given twice, and readers differ in which they keep", key=", ".join(twice))
    return row


def _refuse_constant(literal: str) -> NoReturn:
    refuse("this is not a JSON number", got=literal, allowed="finite numbers")


def _placed(problem: Problem, file: Path, number: int) -> Problem:
    return Problem(**{**vars(problem), "where": f"{file}:{number}"})
