"""Rows come out of every kind of file alike, and a file that is damaged is named."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from nemotron_style.runtime.errors import InputError
from nemotron_style.steps.blocks.data.files.row_file import iterate_rows
from nemotron_style.steps.blocks.data.jsonl import read_rows

ROWS = [{"messages": [{"role": "user", "content": "é☂"}], "n": n} for n in range(3)]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS)


def write_parquet(path: Path, rows: list[dict]) -> None:
    pytest.importorskip("pyarrow", reason="Parquet files are read with pyarrow")
    from pyarrow import Table
    from pyarrow.parquet import write_table

    write_table(Table.from_pylist(rows), path)


def write(path: Path) -> Path:
    """The rows as a file of the type that its name says."""
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(LINES.encode(), mtime=0))
    elif path.suffix == ".parquet":
        write_parquet(path, ROWS)
    elif path.name.startswith("list"):
        path.write_text(json.dumps(ROWS, indent=1))
    else:
        path.write_text(LINES)
    return path


@pytest.mark.parametrize(
    "name", ["a.jsonl", "a.jsonl.gz", "list.json", "lines.json", "a.parquet", "rows.txt"]
)
def test_every_kind_of_file_gives_the_same_rows(tmp_path: Path, name: str) -> None:
    assert [row for _, row in iterate_rows(write(tmp_path / name))] == ROWS


@pytest.mark.parametrize("end", ["jsonl", "jsonl.gz", "parquet"])
def test_shards_are_read_in_the_order_of_their_names(tmp_path: Path, end: str) -> None:
    for number in range(2):
        write(tmp_path / f"train-0000{number}-of-00002.{end}")
    (tmp_path / "dataset_info.json").write_text("{}")
    assert read_rows(tmp_path, dict) == ROWS * 2


@pytest.mark.parametrize("name", ["lines.jsonl", "list.json", "lines.jsonl.gz"])
def test_a_file_that_windows_wrote_has_the_same_rows(tmp_path: Path, name: str) -> None:
    text = json.dumps(ROWS, indent=1) if name == "list.json" else LINES
    data = b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode()
    (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    assert [row for _, row in iterate_rows(tmp_path / name)] == ROWS


def test_a_folder_with_one_file_of_another_name_is_that_file(tmp_path: Path) -> None:
    write(tmp_path / "rows.txt")
    (tmp_path / "artifact.json").write_text("{}")
    assert read_rows(tmp_path, dict) == ROWS
    (tmp_path / "rows.txt").rename(tmp_path / "rows.csv")
    with pytest.raises(InputError, match=r"rows\.csv: rows are not read from a file of this type"):
        read_rows(tmp_path, dict)


def test_files_of_other_names_are_other_data(tmp_path: Path) -> None:
    for name in ("train.jsonl", "validation.jsonl"):
        (tmp_path / name).write_text(LINES)
    with pytest.raises(InputError, match=r"shards of one data set.*train\.jsonl, validation"):
        read_rows(tmp_path, dict)


def test_a_bad_row_is_placed_in_its_file(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('[{"n": 1}, 2]')
    with pytest.raises(InputError, match=r"a\.json: row 2: a row must be an object; got 2"):
        read_rows(tmp_path / "a.json", dict)


@pytest.mark.parametrize(
    ("name", "data", "said"),
    [
        ("cut.jsonl.gz", gzip.compress(LINES.encode(), mtime=0)[:-12], "damaged or cut off"),
        ("plain.jsonl.gz", LINES.encode(), "damaged or cut off"),
        ("no.parquet", b"PAR1 and nothing else", "the Parquet file cannot be read"),
        ("cut.json", b'[{"n": 1}, {"n":', "the file is not JSON"),
        ("table.csv", b"n\n1\n", r"not read from a file of this type; got \.csv"),
        ("wide.jsonl", LINES.encode("utf-16"), "the file is UTF-16, not UTF-8; iconv"),
        ("one.json", json.dumps(ROWS[0], indent=1).encode(), "an object stands on several lines"),
        ("empty.parquet", b"", "the Parquet file cannot be read"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(
    tmp_path: Path, name: str, data: bytes, said: str
) -> None:
    if name.endswith(".parquet"):
        pytest.importorskip("pyarrow", reason="Parquet files are read with pyarrow")
    (tmp_path / name).write_bytes(data)
    with pytest.raises(InputError, match=said) as caught:
        read_rows(tmp_path / name, dict)
    assert name in str(caught.value)
