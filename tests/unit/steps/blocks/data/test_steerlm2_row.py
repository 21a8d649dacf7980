"""Every rule of a scored row, by breaking it, and that what is kept is exactly what was given."""

import copy
import json

import pytest

from nemotron_style.runtime.errors import InputError
from nemotron_style.steps.blocks.data.chat.nemo_chat import NemoChat
from nemotron_style.steps.blocks.data.chat_format import ChatFormat
from nemotron_style.steps.blocks.data.layouts.reader import RowReader
from nemotron_style.steps.blocks.data.steerlm2_row import (
    LOG_P_A,
    LOG_P_Y,
    LOG_Q,
    parse_row,
    read_groups,
)
from nemotron_style.steps.blocks.settings.row_config import RowReading


class Letters:
    """One token a character, so that lengths can be counted by eye."""

    def encode(self, text, *, control):
        return [ord(letter) for letter in text]


CHAT = NemoChat(Letters(), ChatFormat())


def text_of(ids):
    return "".join(map(chr, ids))


def response(value="fine", **changes):
    scored = {"from": "Assistant", "value": value, LOG_P_A: -0.5, LOG_P_Y: -3, LOG_Q: -2.25}
    return scored | changes


def good_row(**changes):
    row = {
        "system": "Be brief.",
        "prompt_turns": [{"from": "User", "value": "How are you?"}],
        "label": "h:3,v:1",
        "responses": [response("fine"), response("very\nwell", **{LOG_P_A: -1.5})],
    }
    return copy.deepcopy(row | changes)


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def read(path, max_tokens=1000):
    return read_groups(path, chat=CHAT, max_tokens=max_tokens)


def told(row):
    with pytest.raises(InputError) as caught:
        parse_row(row, chat=CHAT)
    return str(caught.value)


def test_texts_are_those_of_the_chat_format():
    group = parse_row(good_row(), chat=CHAT)
    assert text_of(group.prompt_ids) == (
        "\x00System\nBe brief.\n\x11User\nHow are you?\n\x11Assistant\n\x12h:3,v:1\n"
    )
    assert tuple(map(text_of, group.responses_ids)) == ("fine\n\x11", "very\nwell\n\x11")
    assert group.log_p_a == (-0.5, -1.5)
    assert group.log_p_y == (-3.0, -3.0)
    assert group.log_q == (-2.25, -2.25)


def test_no_label_leaves_the_label_out():
    assert 0x12 not in parse_row(good_row(label=None), chat=CHAT).prompt_ids


def test_speaker_of_the_responses_stands_in_the_prompt():
    row = good_row(responses=[response(**{"from": "Bot"}), response(**{"from": "Bot"})])
    assert text_of(parse_row(row, chat=CHAT).prompt_ids).endswith("\x11Bot\n\x12h:3,v:1\n")


def test_ends_of_the_range_of_a_log_probability_are_allowed():
    row = good_row(responses=[response(**{LOG_Q: 0}), response(**{LOG_Q: -1e300})])
    assert parse_row(row, chat=CHAT).log_q == (0.0, -1e300)


@pytest.mark.parametrize("field", [LOG_P_A, LOG_P_Y, LOG_Q])
@pytest.mark.parametrize(
    "value",
    [float("nan"), float("inf"), float("-inf"), 0.1, -(10**400), "-1.5", None, True, [-1.0]],
)
def test_log_probability_that_is_none(field, value):
    row = good_row(responses=[response(), response(**{field: value})])
    message = told(row)
    assert f"responses[1].{field}" in message
    assert "finite number" in message


@pytest.mark.parametrize("value", [True, "no", None])
def test_truncated_response(value):
    assert "truncated response" in told(good_row(responses=[response(), response(truncated=value)]))
    parse_row(good_row(responses=[response(), response(truncated=False)]), chat=CHAT)


@pytest.mark.parametrize("count", [0, 2])
def test_even_number_of_turns(count):
    turns = [{"from": name, "value": "x"} for name in ("User", "Assistant")][:count]
    assert "must be odd" in told(good_row(prompt_turns=turns))


def test_lone_response():
    assert "at least two" in told(good_row(responses=[response()]))


def test_responses_by_different_speakers():
    row = good_row(responses=[response(), response(**{"from": "Bot"})])
    assert "Assistant, Bot" in told(row)


def test_last_turn_by_the_one_who_responds():
    row = good_row(prompt_turns=[{"from": "Assistant", "value": "hello"}])
    assert "must be the user's" in told(row)


@pytest.mark.parametrize("field", ["system", "prompt_turns", "label", "responses"])
def test_missing_field_of_a_row(field):
    row = good_row()
    del row[field]
    assert told(row) == f"{field}: missing field"


@pytest.mark.parametrize("field", ["from", "value", LOG_P_A, LOG_P_Y, LOG_Q])
def test_missing_field_of_a_response(field):
    row = good_row()
    del row["responses"][1][field]
    assert told(row) == f"responses[1].{field}: missing field"


def test_unknown_fields():
    row = good_row(mask="User")
    assert "mask: unknown field" in told(row)
    row = good_row(responses=[response(), response(score=3)])
    assert "responses[1].score: unknown field" in told(row)


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"system": None}, "system"),
        ({"label": 3}, "label"),
        ({"label": ""}, "label"),
        ({"prompt_turns": "hello"}, "prompt_turns"),
        ({"prompt_turns": ["hello"]}, "prompt_turns[0]"),
        ({"prompt_turns": [{"from": "User", "value": 1}]}, "prompt_turns[0].value"),
        ({"responses": {}}, "responses"),
        ({"responses": [None, None]}, "responses[0]"),
    ],
)
def test_mistyped_fields(changes, key):
    assert told(good_row(**changes)).startswith(f"{key}: ")


@pytest.mark.parametrize(
    "changes",
    [
        {"system": "a\x11b"},
        {"label": "h:3\x12"},
        {"prompt_turns": [{"from": "User", "value": "\x00System"}]},
        {"prompt_turns": [{"from": "Us\ner", "value": "hello"}]},
        {"responses": [response(), response("good\x11User\nbad")]},
    ],
)
def test_control_token_inside_a_value(changes):
    with pytest.raises(InputError):
        parse_row(good_row(**changes), chat=CHAT)


def test_everything_wrong_with_a_row_is_told_at_once():
    row = good_row(label=7, prompt_turns=[], responses=[response(**{LOG_Q: 1.0}), {"from": "x"}])
    message = told(row)
    for part in ("label", "prompt_turns", f"responses[0].{LOG_Q}", "responses[1].value"):
        assert part in message


def test_rows_become_ids_with_prompt_and_response_apart(tmp_path):
    (group,) = read(write(tmp_path / "rows.jsonl", [good_row()]))
    assert "".join(map(chr, group.prompt_ids)).endswith("\x12h:3,v:1\n")
    assert ["".join(map(chr, ids)) for ids in group.responses_ids] == [
        "fine\n\x11",
        "very\nwell\n\x11",
    ]


def test_rows_with_other_numbers_of_responses_name_the_line(tmp_path):
    rows = [good_row(), good_row(responses=[response()] * 3), good_row()]
    with pytest.raises(InputError, match=r"rows\.jsonl:2: responses: all rows .* got 3"):
        read(write(tmp_path / "rows.jsonl", rows))


def test_row_that_does_not_fit_the_model_is_refused_with_its_length(tmp_path):
    path = write(tmp_path / "rows.jsonl", [good_row()])
    length = len("\x00System\nBe brief.\n\x11User\nHow are you?\n\x11Assistant\n\x12h:3,v:1\n")
    longest = length + len("very\nwell\n\x11")
    assert len(read(path, max_tokens=longest)) == 1
    with pytest.raises(InputError, match=rf"rows\.jsonl:1: responses\[1\].*got {longest} tokens"):
        read(path, max_tokens=longest - 1)


def test_bad_rows_are_counted_and_ten_are_shown(tmp_path):
    rows = [good_row(label=3) for _ in range(25)]
    with pytest.raises(InputError, match="25 bad rows in all, 10 shown") as caught:
        read(write(tmp_path / "rows.jsonl", rows))
    assert len(caught.value.problems) == 11
    assert "rows.jsonl:10: label" in str(caught.value)


def test_bad_and_long_rows_are_left_out_where_that_is_asked_for(tmp_path):
    long = good_row(responses=[response("fine"), response("well " * 400)])
    path = write(tmp_path / "rows.jsonl", [good_row(label=3), good_row(), long, good_row()])
    reader = RowReader(None, RowReading(on_bad_row="skip", max_bad_rows=2), "model.data")
    assert len(read_groups(path, chat=CHAT, max_tokens=1000, reader=reader)) == 2
    assert [one.where for one in reader.report.problems] == [f"{path}:1", f"{path}:3"]
    assert reader.report.facts() | {"first_bad": 0} == {"rows": 4, "bad": 2, "first_bad": 0}
    reader = RowReader(None, RowReading(on_bad_row="skip"), "model.data")
    with pytest.raises(InputError, match=r"model\.data\.max_bad_rows: more rows are bad"):
        read_groups(path, chat=CHAT, max_tokens=1000, reader=reader)


def test_nan_literal_in_the_file_is_refused_with_its_line(tmp_path):
    row = json.dumps(good_row(responses=[response(), response(**{LOG_Q: float("nan")})]))
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(good_row()) + "\n" + row + "\n")
    with pytest.raises(InputError, match=r"rows\.jsonl:2"):
        read(path)
