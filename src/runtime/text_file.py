"""Text files that a user gives: read whole, or refused with one message.

A path that a user gives may be a device without an end, a pipe that nobody writes to, or a file
of any size. The parsers below this program take those, and nesting of any depth, and end in a
hang or an error of their own.
"""

from __future__ import annotations

import json
import os
import re
import stat
import tomllib
from pathlib import Path
from typing import Any

from nemotron_style.runtime.errors import Problem, StepsError
from nemotron_style.runtime.paths import show_path

MOST_BYTES = 1 << 20
"""Far more than a config or a manifest has, and little enough for the slowest parser (YAML)."""
MOST_DIGITS = 4300
"""Of a whole number, the most that Python reads from text."""
SURROGATE = re.compile(r"[\ud800-\udfff]")
"""Half of a pair: Python reads it from an escape, and nothing can write it."""
LONG_NUMBER = re.compile(rf"\d{{{MOST_DIGITS + 1}}}|0[xob][\da-fA-F_]{{3500}}")


def read_text_file(path: Path, error: type[StepsError], *, most: int = MOST_BYTES) -> str:
    """The text of a file that a user gave.

    Raises ``error`` for one that is no regular file, cannot be read, has more than ``most`` bytes,
    is not UTF-8, or holds NUL characters.
    """
    where = show_path(path)
    try:
        data = _read_bytes(path, most)
        text = data.decode("utf-8").removeprefix("\ufeff")  # the mark of Windows' programs
    except FileNotFoundError:
        raise error(Problem(where=where, what="there is no such file")) from None
    except OSError as refused:
        raise error(Problem(where=where, what=f"cannot be read: {refused.strerror}")) from None
    except UnicodeDecodeError as refused:
        place, got = f"{where}:{_line(data, refused.start)}", f"byte {data[refused.start]:#04x}"
        raise error(Problem(where=place, what="is not UTF-8 text", got=got)) from None
    except ValueError as refused:  # of _read_bytes, or a path that holds a NUL character
        raise error(Problem(where=where, what=str(refused))) from None
    if "\0" in text:
        place = f"{where}:{_line(data, data.index(0))}"
        raise error(Problem(where=place, what="holds a NUL character, which no text file does"))
    return text


def _read_bytes(path: Path, most: int) -> bytes:
    # Without O_NONBLOCK, opening a pipe that nobody writes to would wait for ever.
    with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
        mode = os.fstat(file.fileno()).st_mode
        if not stat.S_ISREG(mode):
            raise ValueError("is a directory" if stat.S_ISDIR(mode) else "is not a regular file")
        data = file.read(most + 1)
    if len(data) > most:
        raise ValueError(f"is larger than {most:,} bytes")
    return data


def read_json_file(
    path: Path, error: type[StepsError], *, most: int = MOST_BYTES
) -> dict[str, Any]:
    """The JSON object in a file that a user gave; ``error`` is raised for one that holds none."""
    text = read_text_file(path, error, most=most)
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as refused:
        raise error(explain_parser(refused, text, show_path(path), "JSON")) from None
    if not isinstance(value, dict):
        raise error(Problem(where=show_path(path), what="is not a JSON object"))
    return value


def read_toml_file(path: Path, error: type[StepsError]) -> dict[str, Any]:
    """A TOML file as a table; a file that cannot be read or parsed raises ``error``."""
    text = read_text_file(path, error)
    try:
        if LONG_NUMBER.search(text):  # in hexadecimal it would be read, and could not be shown
            raise ValueError
        return tomllib.loads(text)
    except (ValueError, RecursionError) as refused:
        raise error(explain_parser(refused, text, show_path(path), "TOML")) from None


def explain_parser(error: Exception, text: str, where: str, language: str) -> Problem:
    """What a parser of JSON or TOML could not read, with the line where it is known."""
    if isinstance(error, RecursionError):
        return Problem(where=where, what="is nested too deeply to be read")
    if number := LONG_NUMBER.search(text):
        line = text.count("\n", 0, number.start()) + 1
        what = f"holds a number of more than {MOST_DIGITS} digits"
        return Problem(where=f"{where}:{line}", what=what)
    what, _, position = str(error).partition(" (at ")  # as tomllib writes it
    found = re.search(r"line (\d+)", position)
    line_of_json = getattr(error, "lineno", None)
    line = line_of_json or (int(found[1]) if found else 0)
    what = getattr(error, "msg", what) if line_of_json else what
    return Problem(
        where=f"{where}:{line}" if line else where, what=f"is not valid {language}: {what}"
    )


def _line(data: bytes, position: int) -> int:
    return data.count(b"\n", 0, position) + 1
