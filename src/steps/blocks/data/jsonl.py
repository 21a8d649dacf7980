"""JSON lines in and out: one object a line, every bad row told at once.

A reader of training data that stops at the first bad row makes people mend a file one run at a
time; one that guesses trains on something nobody wrote. This one reads the whole file, counts
every bad row, shows the first ten, and returns rows only when all are good.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

from nemotron_style.runtime.errors import InputError, Problem
from nemotron_style.steps.blocks.data.files.refusal import brief, is_number, refuse
from nemotron_style.steps.blocks.data.files.row_file import iterate_rows

__all__ = ["SHOWN", "brief", "find_jsonl", "is_number", "read_rows", "refuse", "write_rows"]

Row = TypeVar("Row")
SHOWN = 10


def read_rows(path: str | Path, parse: Callable[[dict[str, Any]], Row]) -> list[Row]:
    """All rows of a file of rows, each turned into what ``parse`` returns.

    ``path`` is a file or a folder (an artifact), see :func:`row_file.find_files`.
    ``parse`` refuses a row by raising :class:`InputError` (see :func:`refuse`); its problems come
    back with ``file:line``. Blank lines are skipped.

    Raises:
        InputError: the file is missing, empty or not UTF-8, or any row is bad.
    """
    rows: list[Row] = []
    shown: list[Problem] = []
    bad = 0
    for where, row in iterate_rows(path):
        try:
            if isinstance(row, InputError):
                raise row
            rows.append(parse(row))
        except InputError as error:
            bad += 1
            if bad <= SHOWN:
                shown += [placed(problem, where) for problem in error.problems]
    if bad > SHOWN:
        shown.append(Problem(where=str(path), what=f"{bad} bad rows in all, {SHOWN} shown"))
    if shown:
        raise InputError(shown)
    if not rows:
        raise InputError(Problem(where=str(path), what="the file holds no rows"))
    return rows


def placed(problem: Problem, where: str) -> Problem:
    """The problem, said to be at ``where``."""
    return Problem(**{**vars(problem), "where": where})


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
    """The file itself, or the only ``.jsonl`` file in a directory: for readers that are not ours.

    Raises:
        InputError: there is none, or more than one.
    """
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
