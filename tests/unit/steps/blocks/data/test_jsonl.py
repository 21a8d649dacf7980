"""Reading JSON lines: every bad row is told with its line, and good files come back as they are."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from nemotron_style.runtime.errors import InputError
from nemotron_style.steps.blocks.data.jsonl import read_rows, refuse, write_rows


def parse(row: dict) -> int:
    if not isinstance(row.get("n"), int):
        refuse("n must be a number", key="n", got=repr(row.get("n")))
    return row["n"]


def test_rows_come_back(tmp_path: Path) -> None:
    rows = [{"n": 1, "text": "é\u2028☂"}, {"n": 2}]
    assert write_rows(tmp_path / "a.jsonl", rows) == 2
    assert read_rows(tmp_path / "a.jsonl", dict) == rows
    assert read_rows(tmp_path, parse) == [1, 2]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (b'{"n": NaN}', "NaN"),
        (b'{"n": -Infinity}', "-Infinity"),
        (b'{"n": 1, "n": 2}', "given twice"),
        (b'{"a": {"b": 1, "b": 1}}', "given twice"),
        (b"[1]", "must be an object"),
        (b'{"n": 1', "not JSON"),
        (b'{"n": ' + b"1" * 10_000 + b"}", "more than 4300 digits"),
        (b'{"n": ' + b"[" * 100_000, "nested too deeply"),
        (b'{"n": 1, "text": "\\ud83d"}', "surrogate"),
        (b'{"n": 1, "\\uDE00": 2}', "surrogate"),
        (b'{"n": 1\0}', "not JSON"),
        (b'{"n": "\xff"}', "UTF-8"),
        (b'{"n": "x"}', "n must be a number"),
    ],
)
def test_a_bad_row_is_named(tmp_path: Path, line: bytes, said: str) -> None:
    file = tmp_path / "a.jsonl"
    file.write_bytes(b'{"n": 1}\n\n' + line + b"\n")
    with pytest.raises(InputError, match=said) as caught:
        read_rows(file, parse)
    assert [problem.where for problem in caught.value.problems] == [f"{file}:3"]


def test_all_bad_rows_are_counted_and_ten_shown(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text('{"n": null}\n' * 25)
    with pytest.raises(InputError) as caught:
        read_rows(file, parse)
    assert len(caught.value.problems) == 11
    assert "25 bad rows" in caught.value.problems[-1].what


def test_a_row_has_a_bounded_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nemotron_style.steps.blocks.data.files.row_file.LONGEST_LINE", 100)
    file = tmp_path / "a.jsonl"
    file.write_text('{"n": 1}\n{"n": ' + "1" * 100 + "}\n")
    with pytest.raises(InputError, match=r"a\.jsonl:2: the line has more than 100 bytes"):
        read_rows(file, parse)


def test_a_whole_surrogate_pair_is_a_character(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "\\ud83d\\ude00"}\n')
    assert read_rows(tmp_path / "a.jsonl", dict) == [{"text": "\U0001f600"}]


def test_what_is_no_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.jsonl")
    with pytest.raises(InputError, match="not a regular file"):
        read_rows(tmp_path / "a.jsonl", parse)


def test_empty_missing_and_ambiguous_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("\n")
    (tmp_path / "b.jsonl").write_text("\n")
    with pytest.raises(InputError, match="no rows"):
        read_rows(tmp_path / "a.jsonl", parse)
    with pytest.raises(InputError, match="no such file"):
        read_rows(tmp_path / "c.jsonl", parse)
    with pytest.raises(InputError, match=r"a\.jsonl, b\.jsonl"):
        read_rows(tmp_path, parse)


def test_nan_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        write_rows(tmp_path / "a.jsonl", [{"n": float("nan")}])
