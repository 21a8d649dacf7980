"""Rows that differ between two files."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from nemotron_style.runtime.store.content.finding import Finding
from nemotron_style.runtime.store.content.rows import compare_rows


def write(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def compare(folder: Path, left: list[Any], right: list[Any]) -> Finding:
    sides = write(folder / "a.jsonl", left), write(folder / "b.jsonl", right)
    return compare_rows(*sides, name="rows")


def test_rows_with_ids_are_told_apart_by_them(tmp_path: Path) -> None:
    left = [{"id": n, "score": n} for n in range(10)]
    right = [{"id": 99, "score": 0}, *left[:4], {"id": 4, "score": 7}, *left[6:]]
    found = compare(tmp_path, left, right)
    assert found.summary == "1 changed, 1 added, 1 removed, 4 moved of 10 rows, told apart by id"
    assert found.examples == (
        "row 5 (4) changed: score: 4 -> 7",
        'row 6 (5) removed: {"id": 5, "score": 5}',
        'row 1 (99) added: {"id": 99, "score": 0}',
    )
    assert found.facts["shown"]["changed"][0]["right"] == {"id": 4, "score": 7}


def test_a_row_that_is_put_in_front_changes_no_other(tmp_path: Path) -> None:
    left = [{"text": str(n)} for n in range(100)]
    found = compare(tmp_path, left, [{"text": "new"}, *left[:50], {"text": "x"}, *left[51:]])
    assert found.summary.startswith("2 added, 1 removed, 99 moved of 100 -> 101 rows, told apart")


def test_rows_without_an_id_are_changed_where_they_stand(tmp_path: Path) -> None:
    left = [{"turns": [{"value": str(n)}], "label": "a"} for n in range(5)]
    right = json.loads(json.dumps(left))
    right[3]["turns"][0]["value"] = "other"
    found = compare(tmp_path, left, right)
    assert found.summary == "1 changed of 5 rows, told apart by position"
    assert found.examples == ('row 4 changed: turns[0].value: "3" -> "other"',)


def test_an_id_may_stand_several_times(tmp_path: Path) -> None:
    left = [{"id": "a", "n": 1}, {"id": "a", "n": 2}]
    found = compare(tmp_path, left, [{"id": "a", "n": 1}, {"id": "a", "n": 3}, {"id": "a", "n": 4}])
    assert (found.facts["changed"], found.facts["added"]) == (1, 1)


def test_another_spelling_is_no_other_row(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"a": 1, "b": 2}\n\nno json\n')
    (tmp_path / "b.jsonl").write_text('{"b":2,"a":1}\nno json\n')
    found = compare_rows(tmp_path / "a.jsonl", tmp_path / "b.jsonl", name="rows")
    assert found.summary == "the same 2 rows, written in another way"


def test_compressed_and_parquet_files_have_rows_too(tmp_path: Path) -> None:
    rows = [{"id": n, "v": n / 2} for n in range(3)]
    plain = write(tmp_path / "a.jsonl", rows)
    packed = tmp_path / "b.jsonl.gz"
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    assert compare_rows(plain, packed, name="").summary.startswith("the same 3 rows")
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    table = tmp_path / "c.parquet"
    parquet.write_table(pyarrow.Table.from_pylist([*rows[:2], {"id": 2, "v": 9.0}]), table)
    found = compare_rows(plain, table, name="")
    assert found.examples == ("row 3 (2) changed: v: 1.0 -> 9.0",)


@pytest.mark.parametrize("last", ["", "]" * 100_000, "[" * 100_000])
def test_what_is_no_json_is_compared_as_text(tmp_path: Path, last: str) -> None:
    (tmp_path / "a.jsonl").write_text("\xff\n")
    (tmp_path / "b.jsonl").write_text(f"\xfe{last}\n")
    found = compare_rows(tmp_path / "a.jsonl", tmp_path / "b.jsonl", name="")
    assert found.facts["changed"] == 1
