"""What is left out is counted, named and bounded; everything else is an error."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from nemotron_style.runtime.errors import InputError, Problem
from nemotron_style.steps.blocks.data.conversation import Conversation, parse_conversation
from nemotron_style.steps.blocks.data.layouts.reader import RowReader
from nemotron_style.steps.blocks.settings.row_config import LongRowReading

GOOD = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
LONG = Problem(what="the row is too long", key="messages", allowed="4")


def write(tmp_path: Path, *rows: dict[str, Any]) -> Path:
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path / "rows.jsonl"


def chat(*texts: str) -> dict[str, Any]:
    roles = ["user", "assistant"]
    turns = [{"role": roles[n % 2], "content": text} for n, text in enumerate(texts)]
    return {"messages": turns}


def encode(row: Conversation) -> str:
    return "".join(turn.value for turn in row.turns) + (row.response or "")


def read(path: Path, **settings: Any) -> tuple[list[str], RowReader]:
    """The texts of the rows, of four characters at most."""
    reader = RowReader("training", LongRowReading(**settings), "model.data")

    def parse(row: dict[str, Any]) -> str:
        [text] = reader.shorten([parse_conversation(row)], encode, limit=4, problem=LONG)
        return text

    return reader.read(path, parse), reader


def test_bad_rows_are_left_out_within_their_budget_and_named(tmp_path: Path) -> None:
    path = write(tmp_path, GOOD, {"messages": []}, GOOD, {"n": 1})
    rows, reader = read(path, on_bad_row="skip", max_bad_rows=0.5)
    assert rows == ["ab", "ab"]
    assert reader.report.facts() | {"first_bad": 0} == {
        "rows": 4, "layouts": {"messages": 2}, "bad": 2, "first_bad": 0
    }  # fmt: skip
    told = "\n".join(reader.report.lines("data"))
    assert "data: 2 rows, recognised as messages" in told
    assert "bad, and left out: 2 of 4 rows" in told
    assert f"{path}:2: messages: must be a list" in told
    with pytest.raises(InputError, match=r"more rows are bad.*got 2 of 4; allowed: 1 \(0\.25\)"):
        read(path, on_bad_row="skip", max_bad_rows=0.25)


def test_a_file_of_bad_rows_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no row is left"):
        read(write(tmp_path, {"n": 1}), on_bad_row="skip", max_bad_rows=1)


def test_long_rows_stop_are_left_out_or_lose_their_first_turns(tmp_path: Path) -> None:
    path = write(tmp_path, GOOD, chat("q1", "a1", "q", "a"), chat("q", "very long"))
    with pytest.raises(InputError, match=r":2: .*too long; got 6 tokens; allowed: 4") as caught:
        read(path)
    assert len(caught.value.problems) == 2
    rows, reader = read(path, long_rows="skip")
    assert (rows, reader.report.long) == (["ab"], 2)
    path = write(tmp_path, GOOD, chat("q1", "a1", "q", "a"))
    rows, reader = read(path, long_rows="truncate_prompt")
    assert (rows, reader.report.shortened) == (["ab", "qa"], 1)
    assert "too long, and without their first turns: 1 of 2 rows" in "\n".join(
        reader.report.lines("x")
    )


def test_marks_go_with_their_turns_and_the_last_trained_answer_stays(tmp_path: Path) -> None:
    path = write(tmp_path, chat("q1", "a1", "q", "a") | {"trained": [False, True]})
    assert read(path, long_rows="truncate_prompt")[0] == ["qa"]
    path = write(tmp_path, chat("q1", "a1", "q", "a") | {"trained": [True, False]})
    with pytest.raises(InputError, match="got 6 tokens"):
        read(path, long_rows="truncate_prompt")


def test_an_answer_is_never_cut(tmp_path: Path) -> None:
    path = write(tmp_path, GOOD, chat("q1", "a1", "q", "very long"))
    with pytest.raises(InputError, match="got 14 tokens"):
        read(path, long_rows="truncate_prompt")


def test_rows_of_one_data_set_have_one_layout(tmp_path: Path) -> None:
    path = write(tmp_path, GOOD, {"prompt": "a", "completion": "b"})
    said = "have one layout; got prompt_completion; allowed: messages, as before"
    with pytest.raises(InputError, match=said):
        read(path)


def test_a_row_with_two_layouts_is_read_as_the_one_that_is_named(tmp_path: Path) -> None:
    path = write(tmp_path, {**GOOD, "problem": "x", "solution": "y"})
    with pytest.raises(InputError, match="several layouts: messages and problem_solution"):
        read(path)
    assert read(path, layout="problem_solution")[0] == ["xy"]
    with pytest.raises(InputError, match=r"data\.layout: no layout of training has this name"):
        read(path, layout="parquet")


def test_what_is_not_used_is_said_once(tmp_path: Path) -> None:
    path = write(tmp_path, {**GOOD, "source": "x"}, {**GOOD, "source": "y", "id": None})
    lines = read(path)[1].report.lines("data")
    assert lines == ["data: 2 rows, recognised as messages", "data: not used: source"]


def test_a_misspelt_label_is_no_other_column(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"lable: unknown key.*did you mean 'label'"):
        read(write(tmp_path, {**GOOD, "lable": "helpfulness:4"}))


def test_a_row_for_another_use_says_which(tmp_path: Path) -> None:
    path = write(tmp_path, {"chosen": [], "rejected": []})
    with pytest.raises(InputError, match=r"not training; they are pairs \(ratings\)"):
        read(path)


def test_a_pair_is_a_comparison_that_the_first_answer_wins(tmp_path: Path) -> None:
    other = [GOOD["messages"][0], {"role": "assistant", "content": "c"}]
    path = write(tmp_path, {"chosen": GOOD["messages"], "rejected": other})
    [row] = RowReader("comparisons").read(path, dict)
    assert [turn["role"] for turn in row["messages"]] == ["user", "response_1", "response_2"]
    assert row["truth"] == {"score_1": 1, "score_2": 0}
    path = write(tmp_path, {"chosen": GOOD["messages"], "rejected": chat("x", "c")["messages"]})
    with pytest.raises(InputError, match="to different prompts"):
        RowReader("comparisons").read(path, dict)


def test_columns_that_parquet_fills_with_nulls_are_not_there(tmp_path: Path) -> None:
    """A table has every column in every row, and a struct every field."""
    arrow = pytest.importorskip("pyarrow", reason="Parquet files are read with pyarrow")
    from pyarrow.parquet import write_table

    called = {"messages": [{**turn, "name": "x"} for turn in GOOD["messages"]], "system": "s"}
    rows = [{**GOOD, "prompt": None}, {**called, "prompt": "a", "completion": None}]
    (tmp_path / "data").mkdir()
    for number, row in enumerate(rows):
        path = tmp_path / "data" / f"train-0000{number}-of-00002.parquet"
        write_table(arrow.Table.from_pylist([row]), path)
    texts, reader = read(tmp_path)
    assert texts == ["ab", "ab"]
    assert reader.report.layouts == {"messages": 2}
    assert set(reader.report.unused) == {"messages[].name", "prompt"}
