"""Rows are counted, and the first of them are read as the step will read them."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from hub_folder import write_rows
from nemotron_style.steps.blocks.preflight.model_source import look_at_model, open_chat_of
from nemotron_style.steps.blocks.preflight.row_sample import RowSample, look_at_rows
from nemotron_style.steps.blocks.settings.row_config import RowReading


def test_rows_are_counted_in_every_kind_of_file(tmp_path: Path) -> None:
    plain = write_rows(tmp_path / "rows.jsonl", 70)
    packed = tmp_path / "rows.jsonl.gz"
    packed.write_bytes(gzip.compress(plain.read_bytes().rstrip(b"\n")))
    listed = tmp_path / "rows.json"
    listed.write_text(json.dumps([json.loads(line) for line in plain.open()]))
    for file in (plain, packed, listed):
        assert look_at_rows(file, "training").rows == 70, file
    plain.write_bytes(plain.read_bytes().rstrip(b"\n"))
    assert look_at_rows(plain, "training").rows == 70


def test_rows_in_parquet_are_counted_by_its_table(tmp_path: Path) -> None:
    arrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    table = arrow.table({"prompt": ["a"] * 5, "response": ["b"] * 5})
    parquet.write_table(table, tmp_path / "rows.parquet")
    assert look_at_rows(tmp_path / "rows.parquet", "training").rows == 5


def test_lengths_are_those_of_the_tokens_that_are_trained_on(hub: Path, tmp_path: Path) -> None:
    chat = open_chat_of(look_at_model(hub), None)
    short = look_at_rows(write_rows(tmp_path / "a.jsonl", 3), "training", chat=chat)
    long = look_at_rows(write_rows(tmp_path / "b.jsonl", 3, words=9), "training", chat=chat)
    assert len(short.lengths) == 3
    assert 0 < short.longest < long.longest


def test_bad_rows_are_named_unless_some_may_be_left_out(tmp_path: Path) -> None:
    file = write_rows(tmp_path / "rows.jsonl", 3)
    file.write_text(file.read_text() + '{"messages": "none"}\n')
    [problem] = look_at_rows(file, "training").problems
    assert problem.where == f"{file}:4"
    assert not look_at_rows(file, "training", settings=RowReading(on_bad_row="skip")).problems


def test_rows_of_a_kind_that_is_not_read_are_told_once(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text('{"colour": "red"}\n' * 9)
    assert len(look_at_rows(file, "training").problems) == 1
    assert look_at_rows(file, None).problems == ()


def test_a_file_without_rows_and_one_that_is_missing_are_refused(tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").touch()
    assert "holds no rows" in str(look_at_rows(tmp_path / "empty.jsonl", "training").problems[0])
    assert "no such file" in str(look_at_rows(tmp_path / "no.jsonl", "training").problems[0])


def test_a_note_says_how_many_tokens_there_are_about() -> None:
    sample = RowSample(12_000, 2, lengths=(100, 300))
    told = "data: 12,000 rows, about 2.4 million tokens (about 200 tokens each, "
    assert sample.describe("data") == told + "the longest of 2 has 300)"
    assert RowSample(12, 2).describe("data") == "data: 12 rows"
