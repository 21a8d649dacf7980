"""Rows of ratings and pairs: what they say, and everything that is refused, with its line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from nemotron_style.runtime.errors import InputError
from nemotron_style.steps.blocks.data.jsonl import read_rows
from nemotron_style.steps.blocks.data.rated_row import PairRow, RatedRow, parse_rated

ASKED = {"role": "user", "content": "Name a river."}


def said(text: str) -> list[dict]:
    return [ASKED, {"role": "assistant", "content": text}]


def test_a_rated_row_and_helpsteers_flat_one_say_the_same() -> None:
    ratings = {"helpfulness": 3, "verbosity": 0.5}
    rated = parse_rated({"messages": said("The Rhine."), "attributes": ratings})
    flat = parse_rated({"prompt": "Name a river.", "response": "The Rhine.", **ratings})
    assert rated == flat
    assert isinstance(rated, RatedRow)
    assert rated.attributes == {"helpfulness": 3.0, "verbosity": 0.5}


def test_what_was_not_rated_is_absent() -> None:
    ratings = {"helpfulness": 3, "verbosity": None, "toxicity": -100}
    row = parse_rated({"messages": said("x"), "attributes": ratings}, missing=-100.0)
    assert row.attributes == {"helpfulness": 3.0}


def test_a_pair_has_a_margin() -> None:
    row = parse_rated({"chosen": said("a"), "rejected": said("b"), "margin": 2})
    assert isinstance(row, PairRow)
    assert (row.chosen.response, row.rejected.response, row.margin) == ("a", "b", 2.0)
    assert parse_rated({"chosen": said("a"), "rejected": said("b")}).margin == 0.0


def rated(value: object) -> dict:
    return {"messages": said("x"), "attributes": {"helpfulness": value}}


BAD = {
    "ends with the user": ({"messages": [ASKED, *said("x"), ASKED]}, "assistant"),
    "no attributes": ({"messages": said("x")}, "attributes map names to numbers"),
    "none is rated": (rated(None), "no attribute is rated"),
    "a text": (rated("3"), "helpfulness: a rating must be a finite number"),
    "a truth": (rated(True), "helpfulness: a rating must be a finite number"),
    "too large": (rated(10**400), "helpfulness: a rating must be a finite number"),
    "a strange name": ({"messages": said("x"), "attributes": {"a b": 1}}, "name of an attribute"),
    "an unknown key": ({**rated(1), "weight": 1}, "weight: unknown key"),
    "equal sides": ({"chosen": said("x"), "rejected": said("x")}, "are the same"),
    "one side": ({"chosen": said("x")}, "rejected: a pair needs both sides"),
    "a bad side": ({"chosen": said("x"), "rejected": [ASKED]}, "rejected: .*question and"),
    "a negative margin": (
        {"chosen": said("x"), "rejected": said("y"), "margin": -1},
        "margin is not negative",
    ),
    "neither": ({"text": "x"}, "a row is rated or a pair"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_rows_are_refused_with_file_and_line(tmp_path: Path, name: str) -> None:
    row, told = BAD[name]
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps(rated(1)) + "\n" + json.dumps(row) + "\n")
    with pytest.raises(InputError, match=rf"rows\.jsonl:2: .*{told}"):
        read_rows(file, parse_rated)


@pytest.mark.parametrize("literal", ["NaN", "Infinity", "1e999"])
def test_numbers_that_json_has_not_are_refused(tmp_path: Path, literal: str) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps(rated(1)).replace(": 1}", f": {literal}}}") + "\n")
    with pytest.raises(InputError, match=r"rows\.jsonl:1"):
        read_rows(file, parse_rated)
