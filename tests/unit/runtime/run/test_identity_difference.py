"""Why two plans are two runs, by the keys in which their identities differ."""

from __future__ import annotations

from typing import Any

from nemotron_style.runtime.run.identity_difference import describe_difference
from plans import IDENTITY


def test_differences_name_the_keys() -> None:
    changed = {
        **IDENTITY,
        "config": {"steps": 60, "depth": None},
        "inputs": {"input": "sha256:00"},
        "code": "b" * 64,
    }
    lines = describe_difference(IDENTITY, changed)
    assert "steps: 40 -> 60" in lines
    assert "mill.speed: 1 -> (absent)" in lines
    assert "depth: (absent) -> null" in lines
    assert 'inputs.input: "run:mill-grind-0123456789ab/sack" -> "sha256:00"' in lines
    assert lines[-1].startswith("code of the step changed (aaaaaaaaaaaa -> bbbbbbbbbbbb")
    assert describe_difference(IDENTITY, IDENTITY) == []


def test_a_changed_file_of_a_tree_is_named() -> None:
    old, new = ({**IDENTITY, "tree": {"files": {"step.py": text, "a": "x"}}} for text in "ab")
    assert describe_difference(old, new) == ['tree.files."step.py": "a" -> "b"']


def test_a_difference_shows_in_whatever_key_it_hides() -> None:
    def differ(old: Any, new: Any) -> list[str]:
        return describe_difference({**IDENTITY, "config": old}, {**IDENTITY, "config": new})

    assert differ({"w": {"w.help": 1}}, {"w": {"w": {"help": 1}}}) == [
        'w."w.help": 1 -> (absent)',
        "w.w.help: (absent) -> 1",
    ]
    assert differ({"w": {"a.b": 1, "a": {"b": 2}}}, {"w": {"a.b": 3, "a": {"b": 2}}}) == [
        'w."a.b": 1 -> 3'
    ]
    assert differ({"code": 1}, {"code": 2}) == ["code: 1 -> 2"]
    assert differ({"step": True}, {"step": 1}) == ["step: true -> 1"]
    assert differ({"a": None}, {}) == ["a: null -> (absent)"]
    assert differ({"a": {}}, {"a": {"b": 1}}) == ["a: {} -> (absent)", "a.b: (absent) -> 1"]
    assert differ({"mill.speed": 1, "steps": 4}, {"mill": {"speed": 1}, "steps": 4}) == []
