"""Which rows of two files differ: added, removed, or changed.

Both files are read once, side by side. A row that stands at the same place in both is forgotten
at once; of the others only a hash and the id are kept, so the time is that of reading and the
memory that of the difference. A second pass reads the few rows that are shown.
"""

from __future__ import annotations

import gzip
import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import Any, NamedTuple

from nemotron_style.runtime.store.content.finding import Finding, count, describe_keys, show_row

SUFFIXES = (".jsonl", ".jsonl.gz", ".parquet")
ID_KEYS = ("id", "uid", "uuid", "row_id", "example_id", "prompt_id", "task_id")
SHOWN = 3  # of each sort
PARQUET_ROWS = 1024  # read at a time
MISSING = object()


class Row(NamedTuple):
    """One row: its place from 1, the hash of its content, and its id, if it has one."""

    place: int
    hash: bytes
    id: str


@dataclass
class RowDifference:
    """Rows by how they differ; ``changed`` are pairs, ``moved`` is how many only moved."""

    rows: tuple[int, int] = (0, 0)
    added: list[Row] = field(default_factory=list)
    removed: list[Row] = field(default_factory=list)
    changed: list[tuple[Row, Row]] = field(default_factory=list)
    moved: int = 0
    by_id: bool = True

    @property
    def counts(self) -> dict[str, int]:
        """How many of each sort."""
        return {
            "changed": len(self.changed),
            "added": len(self.added),
            "removed": len(self.removed),
            "moved": self.moved,
        }


def has_rows(path: str) -> bool:
    """Whether a file is one of rows, by its name."""
    return path.endswith(SUFFIXES)


def compare_rows(left: Path, right: Path, *, name: str) -> Finding:
    """The rows in which two files differ. Raises ImportError for parquet without pyarrow.

    Rows with an id are told apart by it. Rows without one that are equal are the same row,
    wherever they stand; of the others those at the same place are one row that was changed.
    """
    difference = match_rows(left, right)
    counts = difference.counts
    parts = [f"{number:,} {sort}" for sort, number in counts.items() if number]
    ours, theirs = difference.rows
    total = count(ours, "row") if ours == theirs else f"{ours:,} -> {count(theirs, 'row')}"
    how = "by id" if difference.by_id else "by position"
    summary = f"{', '.join(parts)} of {total}, told apart {how}" if parts else ""
    summary = summary or f"the same {total}, written in another way"
    examples, shown = show_examples(left, right, difference)
    facts = {"rows": list(difference.rows), **counts, "told_apart": how, "shown": shown}
    return Finding(name, summary, tuple(examples), facts)


def match_rows(left: Path, right: Path) -> RowDifference:
    """Find the counterpart of every row that is not where it is in the other file."""
    difference = RowDifference()
    counts = [0, 0]
    only: tuple[list[Row], list[Row]] = ([], [])
    for pair in zip_longest(_read(left), _read(right), fillvalue=MISSING):
        places = [place + (row is not MISSING) for place, row in zip(counts, pair, strict=True)]
        if pair[0] != pair[1]:
            found = [_describe(*one) for one in zip(places, pair, strict=True)]
            if found[0] is None or found[1] is None or found[0].hash != found[1].hash:
                for rows, row in zip(only, found, strict=True):
                    rows += [row] if row else []
        counts = places
    difference.rows = (counts[0], counts[1])
    difference.by_id = all(row.id for rows in only for row in rows)
    match = _match_by_id if difference.by_id else _match_by_content
    match(*only, difference)
    return difference


def _describe(place: int, raw: Any) -> Row | None:
    """A row without its content; None where the file has no more."""
    if raw is MISSING:
        return None
    row = _parse(raw)
    text = json.dumps(row, sort_keys=True, default=str)
    digest = hashlib.blake2b(text.encode(), digest_size=16).digest()
    return Row(place, digest, _find_id(row))


def _match_by_id(ours: list[Row], theirs: list[Row], difference: RowDifference) -> None:
    # An id that stands several times in a file means its first, its second ... row.
    left, right = (dict(zip(_number(rows), rows, strict=True)) for rows in (ours, theirs))
    for key, row in left.items():
        other = right.get(key)
        if other is None:
            difference.removed.append(row)
        elif other.hash != row.hash:
            difference.changed.append((row, other))
        else:
            difference.moved += 1
    difference.added = [row for key, row in right.items() if key not in left]


def _number(rows: list[Row]) -> Iterator[tuple[str, int]]:
    seen: Counter[str] = Counter()
    for row in rows:
        yield row.id, seen[row.id]
        seen[row.id] += 1


def _match_by_content(ours: list[Row], theirs: list[Row], difference: RowDifference) -> None:
    common = Counter(row.hash for row in ours) & Counter(row.hash for row in theirs)
    difference.moved = common.total()
    left, right = (_without(rows, common) for rows in (ours, theirs))
    places = {row.place: row for row in right}
    for row in left:
        if other := places.pop(row.place, None):
            difference.changed.append((row, other))
        else:
            difference.removed.append(row)
    difference.added = list(places.values())


def _without(rows: list[Row], common: Counter[bytes]) -> list[Row]:
    """The rows but for as many of each content as both files have."""
    left = common.copy()
    kept = []
    for row in rows:
        if left[row.hash] > 0:
            left[row.hash] -= 1
        else:
            kept.append(row)
    return kept


def _find_id(row: Any) -> str:
    if isinstance(row, dict):
        for key in ID_KEYS:
            if isinstance(row.get(key), str | int):
                return str(row[key])
    return ""


def read_rows(path: Path) -> Iterator[Any]:
    """Every row of a file; a line that is not JSON is a row of text, an empty one is none."""
    return map(_parse, _read(path))


def _read(path: Path) -> Iterator[Any]:
    """Every row as it is written: a line of JSON, unparsed, or a row of a parquet file."""
    if path.name.endswith(".parquet"):
        from pyarrow import parquet

        for batch in parquet.ParquetFile(path).iter_batches(PARQUET_ROWS):
            yield from batch.to_pylist()
        return
    with gzip.open(path) if path.name.endswith(".gz") else path.open("rb") as file:
        yield from (stripped for line in file if (stripped := line.strip()))


def _parse(raw: Any) -> Any:
    if not isinstance(raw, bytes):
        return raw
    try:
        return json.loads(raw)
    except (ValueError, RecursionError):
        return raw.decode(errors="backslashreplace")


def show_examples(
    left: Path, right: Path, difference: RowDifference
) -> tuple[list[str], dict[str, Any]]:
    """The first rows of each sort, as lines and as plain data."""
    changed = difference.changed[:SHOWN]
    removed, added = difference.removed[:SHOWN], difference.added[:SHOWN]
    ours = _pick(left, [pair[0] for pair in changed] + removed)
    theirs = _pick(right, [pair[1] for pair in changed] + added)
    lines = [
        f"{_name(row)} changed: {'; '.join(keys)}"
        for row, other in changed
        if (keys := describe_keys(ours[row.place], theirs[other.place], most=1))
    ]
    lines += [f"{_name(row)} removed: {show_row(ours[row.place])}" for row in removed]
    lines += [f"{_name(row)} added: {show_row(theirs[row.place])}" for row in added]
    shown = {
        "changed": [
            {"row": row.place, "id": row.id, "left": ours[row.place], "right": theirs[other.place]}
            for row, other in changed
        ],
        "removed": [{"row": row.place, "id": row.id, "left": ours[row.place]} for row in removed],
        "added": [{"row": row.place, "id": row.id, "right": theirs[row.place]} for row in added],
    }
    return lines, shown


def _name(row: Row) -> str:
    return f"row {row.place}" + (f" ({row.id})" if row.id else "")


def _pick(path: Path, rows: list[Row]) -> dict[int, Any]:
    """The content of a few rows, by place."""
    wanted = {row.place for row in rows}
    picked: dict[int, Any] = {}
    for place, content in enumerate(read_rows(path), start=1):
        if len(picked) == len(wanted):
            break
        if place in wanted:
            picked[place] = content
    return picked
