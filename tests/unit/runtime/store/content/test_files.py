"""Files that differ between two artifacts, and in what."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from nemotron_style.runtime.store.content.files import Side, compare_files
from nemotron_style.runtime.store.store import Store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def make(store: Store, name: str, files: dict[str, bytes]) -> Side:
    staged = store.stage(name)
    for path, content in files.items():
        (staged / path).parent.mkdir(parents=True, exist_ok=True)
        (staged / path).write_bytes(content)
    artifact = store.commit(staged, name=name, kind="stone")
    return Side(artifact.record, artifact.path)


def test_each_file_is_compared_as_what_it_is(store: Store) -> None:
    left = {
        "same.txt": b"x",
        "config.json": b'{"a": {"b": 1}, "c": 2}',
        "spelling.json": b'{"a": 1}',
        "report.md": b"one\ntwo\nthree\n",
        "blob": b"\xff" * 10,
        "old": b"-",
        "train.jsonl": b'{"id": 1, "x": 1}\n',
    }
    right = {
        **left,
        "config.json": b'{"a": {"b": 3}, "c": 2}',
        "spelling.json": b'{ "a": 1 }',
        "report.md": b"one\n2\nthree\n",
        "blob": b"\xff" * 7 + b"\0" * 5,
        "new": b"-",
        "rows.jsonl": b'{"id": 1, "x": 2}\n',
    }
    del right["old"], right["train.jsonl"]
    found = compare_files(make(store, "a", left), make(store, "b", right))
    assert {one.path: (one.summary, one.examples) for one in found} == {
        "train.jsonl / rows.jsonl": (
            "1 changed of 1 row, told apart by id",
            ("row 1 (1) changed: x: 1 -> 2",),
        ),
        "blob": ("differs from byte 7 of 10 -> 12", ()),
        "config.json": ("1 key differs", ("a.b: 1 -> 3",)),
        "new": ("only right", ()),
        "old": ("only left", ()),
        "report.md": ("1 line differs, the first is line 2", ('"two" -> "2"',)),
        "spelling.json": ("the same values, written in another way", ()),
    }
    json.dumps([one.facts for one in found])


def test_what_cannot_be_read_says_so(store: Store) -> None:
    left = make(store, "a", {"model.safetensors": b"no table", "a.parquet": b"1"})
    right = make(store, "b", {"model.safetensors": b"none", "a.parquet": b"2"})
    found = compare_files(left, right)
    assert [one.path for one in found] == ["weights (1 file)", "a.parquet"]
    assert all(one.summary.startswith("differs, and was not looked into: ") for one in found)


def test_equal_artifacts_have_no_finding(store: Store) -> None:
    files = {"a": b"x"}
    assert compare_files(make(store, "a", files), make(store, "b", files)) == []
