"""Every layout is read as it is meant, or refused with the reason; none is guessed."""

from __future__ import annotations

import contextlib
import json
import random
import runpy
from pathlib import Path
from typing import Any

import pytest

from nemotron_style.runtime.errors import InputError
from nemotron_style.steps.blocks.data.conversation import (
    Conversation,
    Turn,
    parse_conversation,
    parse_prompt_row,
)
from nemotron_style.steps.blocks.data.layouts.reader import RowReader
from nemotron_style.steps.blocks.data.layouts.refused import REFUSED as REFUSED_LAYOUTS
from nemotron_style.steps.blocks.data.layouts.table import LAYOUTS
from nemotron_style.steps.blocks.data.rated_row import PairRow, RatedRow, parse_rated
from nemotron_style.steps.blocks.settings.row_config import RowReading

DATA = runpy.run_path(str(Path(__file__).with_name("rows.py")))
CASES, BAD = DATA["CASES"], DATA["BAD"]
READ = [name for name, case in CASES.items() if not case.refused]
REFUSED = [name for name, case in CASES.items() if case.refused]
PARSERS = {"training": parse_conversation, "prompts": parse_prompt_row, "ratings": parse_rated}


def conversation(turns: list[str], **more: Any) -> Conversation:
    """A conversation of turns that are the user's and the assistant's in turn."""
    speakers = ["User", "Assistant"]
    return Conversation(
        turns=tuple(Turn(speakers[index % 2], text) for index, text in enumerate(turns)), **more
    )


def expected(case: Any) -> Any:
    if case.use == "prompts":
        return conversation(case.turns, system=case.system)
    answered = conversation(
        case.turns[:-1],
        system=case.system,
        response=case.turns[-1],
        label=case.label,
        type=case.type,
        trained=case.trained,
    )
    if case.ratings is not None:
        return RatedRow(answered, case.ratings)
    if case.rejected is not None:
        rejected = conversation(case.turns[:-1], system=case.system, response=case.rejected)
        return PairRow(answered, rejected)
    return answered


def read(tmp_path: Path, case: Any) -> tuple[list[Any], RowReader]:
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps(case.row) + "\n")
    reader = RowReader(case.use)
    return reader.read(file, PARSERS[case.use]), reader


@pytest.mark.parametrize("name", READ)
def test_a_layout_becomes_the_conversation_that_is_meant(tmp_path: Path, name: str) -> None:
    rows, reader = read(tmp_path, CASES[name])
    assert rows == [expected(CASES[name])]
    assert reader.report.layouts == {CASES[name].layout: 1}


@pytest.mark.parametrize("name", REFUSED)
def test_a_layout_that_leaves_something_open_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match=rf"rows\.jsonl:1: .*{CASES[name].refused}"):
        read(tmp_path, CASES[name])


@pytest.mark.parametrize("name", BAD)
def test_a_bad_row_is_named_and_the_good_one_beside_it_is_not(tmp_path: Path, name: str) -> None:
    bad = BAD[name]
    good = next(case.row for case in CASES.values() if (case.layout, case.use) == (name, bad.use))
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps(good) + "\n" + json.dumps(bad.row) + "\n")
    with pytest.raises(InputError, match=rf"rows\.jsonl:2: .*{bad.said}") as caught:
        RowReader(bad.use).read(file, PARSERS[bad.use])
    assert {problem.where for problem in caught.value.problems} == {f"{file}:2"}
    reader = RowReader(bad.use, RowReading(on_bad_row="skip", max_bad_rows=1))
    assert len(reader.read(file, PARSERS[bad.use])) == 1
    assert (reader.report.rows, reader.report.bad) == (2, 1)


def test_of_fifty_one_layouts_forty_are_read() -> None:
    assert len(CASES) >= 51
    assert len(READ) >= 40


def test_the_page_of_data_names_every_layout() -> None:
    page = (Path(__file__).parents[6] / "docs" / "data.md").read_text()
    assert [layout.name for layout in LAYOUTS if f"`{layout.name}`" not in page] == []
    assert [layout.name for layout in REFUSED_LAYOUTS if layout.name not in page] == []


def test_a_layout_has_a_name_of_its_own() -> None:
    assert len({layout.name for layout in LAYOUTS}) == len(LAYOUTS)


JUNK = [None, True, 3, -1.5, 10**400, "", " ", "x", [], [1], ["a", "b"], {}, {"a": 1}, [[]], b"b"]


def spoil(value: Any, rng: random.Random) -> Any:
    """The value with junk at a random place in it."""
    if isinstance(value, dict) and value and rng.random() < 0.8:
        key = rng.choice([*value])
        return {**value, key: spoil(value[key], rng)}
    if isinstance(value, list) and value and rng.random() < 0.8:
        at = rng.randrange(len(value))
        return [*value[:at], spoil(value[at], rng), *value[at + 1 :]]
    return rng.choice(JUNK)


@pytest.mark.parametrize("name", CASES)
def test_a_spoilt_row_is_read_or_refused_and_nothing_else(name: str) -> None:
    case, rng = CASES[name], random.Random(name)
    for _ in range(150):
        row = spoil(case.row, rng)
        if not isinstance(row, dict):
            continue
        for use, parse in PARSERS.items():
            with contextlib.suppress(InputError):
                parse(RowReader(use).own_row(row))


def test_rows_within_an_object_are_pointed_at() -> None:
    with pytest.raises(InputError, match=r"got train; .*; the rows stand in 'train'"):
        RowReader("training").own_row({"train": [{"instruction": "a", "output": "b"}]})
    with pytest.raises(InputError, match=r"they are messages \(training\)") as caught:
        RowReader("ratings").own_row({"messages": [{"role": "user", "content": "a"}]})
    assert "the rows stand in" not in str(caught.value)


def test_a_pair_of_nemo_rl_has_two_ranks() -> None:
    one = {"rank": 0, "completion": [{"role": "assistant", "content": "a"}]}
    row = {"context": [{"role": "user", "content": "q"}], "completions": [one, one]}
    with pytest.raises(InputError, match=r"two answers of two ranks; got \[0, 0\]"):
        RowReader("ratings").own_row(row)
