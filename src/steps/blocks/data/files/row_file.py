"""The rows of a file, or of a folder of shards: JSON lines, a list in JSON, or Parquet.

A row that cannot be decoded is given as the error that says so, with its place, so that a reader
can name all bad rows of a file at once. A file that cannot be read at all raises.
"""

from __future__ import annotations

import gzip
import json
import os
import re
import zlib
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import IO, Any, NoReturn

from nemotron_style.runtime.errors import InputError, Problem
from nemotron_style.runtime.text_file import MOST_DIGITS, SURROGATE
from nemotron_style.steps.blocks.data.files.refusal import brief, refuse

Row = dict[str, Any]
Placed = tuple[str, Row | InputError]
"""Where a row stands (``file:line``), and the row, or why it is none."""

LONGEST_LINE = 64 << 20
"""Bytes of a row. A file without line ends would else be read into memory as one."""

UTF8_MARK = b"\xef\xbb\xbf"
"""What Windows' programs write before a text; it is no part of it (RFC 8259, section 8.1)."""
UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")

NOT_ROWS = {"artifact.json", "dataset_info.json", "dataset_infos.json", "state.json"}
_SHARDS = ("*.jsonl", "*.jsonl.gz", "*.parquet")


def iterate_rows(path: str | Path) -> Iterator[Placed]:
    """Every row of the files that :func:`find_files` finds, with its place, in order.

    Raises:
        InputError: a file is missing, of no known type, damaged, or its library is missing.
    """
    for file in find_files(path):
        yield from _open(file)(file)


def find_files(path: str | Path) -> list[Path]:
    """The file itself, or the files of a folder: one, or shards whose names differ in digits.

    Files of other names would be other data, such as a validation set beside a training set, so
    a folder with several of them is refused.
    """
    path = Path(path)
    if path.is_file():
        return [path]
    if not path.is_dir():
        what = "is not a regular file" if path.exists() else "no such file"
        raise InputError(Problem(where=os.fspath(path), what=what))
    found = sorted(file for pattern in _SHARDS for file in path.glob(pattern))
    found = found or sorted(file for pattern in _SHARDS for file in path.glob(f"*/{pattern}"))
    found = found or sorted(file for file in path.glob("*.json") if file.name not in NOT_ROWS)
    found = found or _only_file(path)
    if len({re.sub(r"\d+", "#", file.name) for file in found}) != 1:
        raise InputError(
            Problem(
                where=os.fspath(path),
                what="a directory used as data must hold one file of rows, or shards of one data "
                "set whose names differ in their numbers alone",
                got=", ".join(file.name for file in found) or "none",
                allowed=".jsonl, .jsonl.gz, .json, .parquet",
                fix="name the file itself",
            )
        )
    return found


def _only_file(folder: Path) -> list[Path]:
    """The one file of an artifact that was a file of another name."""
    files = [file for file in folder.iterdir() if file.is_file() and file.name not in NOT_ROWS]
    return files if len(files) == 1 else []


def _open(file: Path) -> Callable[[Path], Iterator[Placed]]:
    """The reader of a file, by its name; a name without a known end is read as JSON lines."""
    name = file.name.lower()
    if name.endswith(".parquet"):
        return _parquet_rows
    if name.endswith(".gz"):
        return _gzip_lines
    if name.endswith(".json") and _starts_with_list(file):
        return _list_rows
    if name.endswith((".csv", ".tsv", ".arrow", ".zip", ".zst", ".bz2", ".xz", ".tar")):
        allowed = ".jsonl, .jsonl.gz, .json, .parquet, or a folder of shards"
        what = "rows are not read from a file of this type"
        raise InputError(Problem(where=str(file), what=what, got=file.suffix, allowed=allowed))
    return _plain_lines


def _starts_with_list(file: Path) -> bool:
    with file.open("rb") as stream:
        return stream.read(1024).removeprefix(UTF8_MARK).lstrip()[:1] == b"["


def _plain_lines(file: Path) -> Iterator[Placed]:
    with file.open("rb") as stream:
        yield from _lines(file, stream)


def _gzip_lines(file: Path) -> Iterator[Placed]:
    try:
        with gzip.open(file, "rb") as stream:
            yield from _lines(file, stream)
    except (OSError, EOFError, zlib.error) as error:
        what = "the compressed file is damaged or cut off"
        raise InputError(Problem(where=str(file), what=what, got=str(error))) from error


def _lines(file: Path, stream: IO[bytes]) -> Iterator[Placed]:
    """Rows of lines that are not blank. Split on LF only: U+2028 may stand inside a string."""
    lines = iter(lambda: stream.readline(LONGEST_LINE + 1), b"")
    for number, line in enumerate(lines, start=1):
        if len(line) > LONGEST_LINE:
            what = f"the line has more than {LONGEST_LINE:,} bytes"
            raise InputError(Problem(where=f"{file}:{number}", what=what))
        if number == 1:
            line = line.removeprefix(UTF8_MARK)
            _refuse_other_texts(file, line)
        if line.strip():
            yield f"{file}:{number}", _decode_line(line)


def _refuse_other_texts(file: Path, first_line: bytes) -> None:
    """Refuse a file whose every line would be refused, by its first one, and once."""
    if first_line.startswith(UTF16_MARKS):
        what, fix = "the file is UTF-16, not UTF-8", "iconv -f UTF-16 -t UTF-8 OLD > NEW"
        raise InputError(Problem(where=str(file), what=what, fix=fix))
    if first_line.strip() == b"{":
        what = "an object stands on several lines"
        fix = "write each row on a line of its own, or all of them as a list in a .json file"
        raise InputError(Problem(where=f"{file}:1", what=what, fix=fix))


def _list_rows(file: Path) -> Iterator[Placed]:
    try:
        rows = _decode(file.read_bytes().removeprefix(UTF8_MARK), "file")
    except InputError as error:
        raise InputError(
            [Problem(**{**vars(one), "where": str(file)}) for one in error.problems]
        ) from error
    for number, row in enumerate(rows, start=1):
        yield f"{file}: row {number}", _checked(row, escaped=True)


def _parquet_rows(file: Path) -> Iterator[Placed]:
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile
    except ImportError:
        fix = "pip install 'nemotron-style[parquet]'"
        what = "Parquet files are read with pyarrow, which is not installed"
        raise InputError(Problem(where=str(file), what=what, fix=fix)) from None
    try:
        number = 0
        with closing(ParquetFile(file)) as table:
            for batch in table.iter_batches(batch_size=1024):
                for row in batch.to_pylist():
                    number += 1
                    yield f"{file}: row {number}", row
    except (ArrowException, OSError) as error:
        what = "the Parquet file cannot be read"
        raise InputError(Problem(where=str(file), what=what, got=str(error)[:200])) from error


def _decode_line(line: bytes) -> Row | InputError:
    try:
        row = _decode(line, "line")
    except InputError as error:
        return error
    return _checked(row, escaped=b"\\u" in line)


def _checked(row: Any, *, escaped: bool) -> Row | InputError:
    """A decoded row; ``escaped`` says whether its text may hold half of a surrogate pair."""
    if not isinstance(row, dict):
        return InputError(Problem(what="a row must be an object", got=brief(row)))
    if escaped and SURROGATE.search(json.dumps(row, ensure_ascii=False)):
        what = "half of a surrogate pair (\\ud800 to \\udfff) is no character"
        return InputError(Problem(what=what))
    return row


def _decode(data: bytes, unit: str) -> Any:
    """The JSON value of a ``unit`` of text, its line or the whole file."""
    try:
        return json.loads(
            data.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_refuse_constant
        )
    except UnicodeDecodeError as error:
        got = f"byte {data[error.start]:#04x} at {error.start}"
        refuse(f"the {unit} is not UTF-8", got=got)
    except json.JSONDecodeError as error:
        fix = "one object a line" if unit == "line" else "a list of objects"
        place = f"column {error.colno}" if unit == "line" else f"line {error.lineno}"
        refuse(f"the {unit} is not JSON: {error.msg} ({place})", fix=fix)
    except RecursionError:
        refuse(f"the {unit} is nested too deeply to be read")
    except InputError:  # a ValueError, of _unique
        raise
    except ValueError:  # of int()
        refuse(f"a number has more than {MOST_DIGITS} digits")


def _unique(pairs: list[tuple[str, Any]]) -> Row:
    row = dict(pairs)
    if len(row) < len(pairs):
        names = [name for name, _ in pairs]
        twice = sorted({name for name in names if names.count(name) > 1})
        refuse("a key is given twice, and readers differ in which they keep", key=", ".join(twice))
    return row


def _refuse_constant(literal: str) -> NoReturn:
    refuse("this is not a JSON number", got=literal, allowed="finite numbers")
