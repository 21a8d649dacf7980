"""Prompts that leave room for a response."""

from __future__ import annotations

import json

import pytest

from nemotron_style.runtime.errors import InputError
from nemotron_style.steps.blocks.data.layouts.reader import RowReader
from nemotron_style.steps.blocks.data.prompt import PromptReader, count_shared
from nemotron_style.steps.blocks.settings.row_config import LongRowReading


class Chat:
    """The turns, a token a letter."""

    def prompt_ids(self, conversation):
        return list("".join(turn.value for turn in conversation.turns).encode())


def reader(max_new_tokens):
    return PromptReader(Chat(), 8, max_new_tokens, "sampling.length")


def write(path, *texts, **more):
    rows = [{"messages": [{"role": "user", "content": text}], **more} for text in texts]
    (path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_a_prompt_is_read_and_answered(tmp_path):
    [prompt] = reader(4).read(write(tmp_path, "abcd"))
    assert ([*prompt.ids], prompt.question, prompt.principle) == ([97, 98, 99, 100], "abcd", None)
    assert prompt.answered("e")[-1] == {"role": "assistant", "content": "e"}


def test_prompts_that_are_too_long_are_named_with_their_lines(tmp_path):
    with pytest.raises(InputError, match=r"rows.jsonl:2: the prompt leaves no room.*4: the cont"):
        reader(4).read(write(tmp_path, "abcd", "abcde"))


def test_a_principle_is_a_text(tmp_path):
    [prompt] = reader(4).read(write(tmp_path, "a", principle="short"))
    assert prompt.principle == "short"
    with pytest.raises(InputError, match="a principle is a text"):
        reader(4).read(write(tmp_path, "a", principle=3))


def test_a_long_prompt_loses_its_first_turns_and_its_answer_where_that_is_asked_for(tmp_path):
    turns = [
        {"role": role, "content": text}
        for role, text in (
            ("system", "s"),
            ("user", "abcd"),
            ("assistant", "e"),
            ("user", "f"),
            ("assistant", "g"),
        )
    ]
    (tmp_path / "rows.jsonl").write_text(json.dumps({"messages": turns}) + "\n")
    rows = RowReader("prompts", LongRowReading(long_rows="truncate_prompt"))
    [prompt] = PromptReader(Chat(), 8, 4, "sampling.length", rows).read(tmp_path)
    assert prompt.messages == (turns[0], turns[3])
    assert [*prompt.ids] == [*b"f"]
    assert rows.report.shortened == 1


def test_a_response_of_the_whole_context_is_refused():
    with pytest.raises(InputError, match=r"sampling\.length: leaves no room.*allowed: 1 to 7"):
        reader(8)


def test_prompts_are_the_same_by_what_they_say_and_not_by_where_they_stand(tmp_path):
    """Another file, order and spelling of the row; a prompt that begins alike is another one."""
    train = reader(4).read(write(tmp_path, "ab", "cd", "ab"))
    (tmp_path / "other").mkdir()
    held_out = reader(4).read(write(tmp_path / "other", "cd", "a", "abc", "ab"))
    assert count_shared(train, held_out) == 2
    assert count_shared(train, []) == 0
