"""Layouts of prompts: conversations that wait for their answer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from nemotron_style.steps.blocks.data.files.refusal import brief, refuse
from nemotron_style.steps.blocks.data.layouts.conversations import (
    BESIDE,
    SYSTEMS,
    has,
    refuse_more,
)
from nemotron_style.steps.blocks.data.layouts.layout import Layout, OwnRow, Row, Use
from nemotron_style.steps.blocks.data.layouts.turns import (
    OPENAI,
    Message,
    plain_text,
    read_extra_id,
    read_prompt,
    read_turn,
    said,
    with_system,
)

PROMPTS: frozenset[Use] = frozenset({"prompts"})
PARAMS = "responses_create_params"


def bare(question: str) -> Callable[[Row, set[str]], OwnRow]:
    """A reader of a column that holds a prompt, and of one with a system message."""

    def read(row: Row, unused: set[str]) -> OwnRow:
        refuse_more(row)
        for name in BESIDE:
            if name != question and row.get(name):
                what = "this column may belong to the question, and nothing says how"
                fix = "put it into the text of the question, or remove the column"
                refuse(what, key=name, got=brief(row[name]), fix=fix)
        turns = read_prompt(row, question, unused)
        for name in SYSTEMS:
            turns = with_system(row.get(name), turns, name)
        return {"messages": turns}

    return read


def instruction(row: Row, unused: set[str]) -> OwnRow:
    """Alpaca's ``instruction`` and ``input`` without an answer."""
    text = plain_text(row, "instruction")
    if row.get("input"):
        text += f"\n\n{plain_text(row, 'input')}"
    return {"messages": [said("user", text)]}


def rendered(row: Row, unused: set[str]) -> OwnRow:
    """NeMo-Aligner's prompts for PPO and rejection sampling: ``text`` in NeMo's own format."""
    text = row["text"]
    if not isinstance(text, str) or not text.startswith("<extra_id_"):
        refuse(
            "a text without turns: nothing says who speaks",
            key="text",
            got=brief(text),
            allowed="NeMo's format, <extra_id_0>System\\n...",
            fix="give the turns themselves, as messages",
        )
    return {"messages": read_extra_id(text, "text")}


def gym(row: Row, unused: set[str]) -> OwnRow:
    """NeMo-Gym's ``responses_create_params``: an ``input`` of OpenAI's Responses API."""
    extra = row.get("extra_env_info")
    params = row.get(PARAMS) or (extra or {}).get(PARAMS)
    if not isinstance(params, Mapping) or not params.get("input"):
        refuse("there is no input", key=f"{PARAMS}.input", got=brief(params))
    if params.get("tools"):
        what = "the policy is offered no tools, so it would be judged on what it cannot do"
        refuse(what, key=f"{PARAMS}.tools", got=brief(params["tools"]), allowed="an empty list")
    turns = _read_items(params["input"], f"{PARAMS}.input", unused)
    return {"messages": with_system(params.get("instructions"), turns, f"{PARAMS}.instructions")}


def _read_items(given: Any, key: str, unused: set[str]) -> list[Message]:
    if isinstance(given, str):
        return [said("user", given)]
    if not isinstance(given, list):
        refuse("input is a text or a list", key=key, got=brief(given))
    turns = []
    for index, item in enumerate(given):
        place = f"{key}[{index}]"
        if not isinstance(item, Mapping):
            refuse("an item of input is an object", key=place, got=brief(item))
        if item.get("type", "message") != "message":
            what = "an item that is no message is not continued"
            refuse(what, key=f"{place}.type", got=brief(item["type"]), fix="leave the row out")
        plain = {name: item[name] for name in item if name not in ("type", "id", "status")}
        turns.append(read_turn(plain, place, OPENAI, unused, f"{key}[]"))
    return turns


def first_turn(row: Row, unused: set[str]) -> OwnRow:
    """MT-Bench's ``turns``: the first question; the others would follow an answer to it."""
    turns = row["turns"]
    if not turns or not isinstance(turns[0], str) or not turns[0]:
        refuse("must be a list of questions", key="turns", got=brief(turns))
    if len(turns) > 1:
        unused.add("turns[1:]")
    return {"messages": [said("user", turns[0])]}


def steerlm2(row: Row, unused: set[str]) -> OwnRow:
    """Our own ``steerlm2_jsonl``: the prompt of a group."""
    turns = row["prompt_turns"]
    if not isinstance(turns, list) or not all(isinstance(turn, Mapping) for turn in turns):
        refuse("must be a list of turns", key="prompt_turns", got=brief(turns))
    names = ("user", "assistant")
    read = [said(names[index % 2], turn.get("value")) for index, turn in enumerate(turns)]
    return {"messages": with_system(row.get("system"), read, "system")}


def _is_gym(row: Row) -> bool:
    extra = row.get("extra_env_info")
    nested = extra.get(PARAMS) if isinstance(extra, Mapping) else None
    return row.get(PARAMS) is not None or nested is not None


ONLY_PROMPTS = (
    Layout(
        "nemo_gym",
        PROMPTS,
        frozenset({PARAMS, "extra_env_info"}),
        _is_gym,
        gym,
        '{"responses_create_params": {"input": [{"role": "user", "content": "..."}]}}',
    ),
    Layout(
        "mt_bench",
        PROMPTS,
        frozenset({"turns"}),
        lambda row: isinstance(row.get("turns"), list) and row.get("choices") is None,
        first_turn,
        '{"question_id": 81, "category": "writing", "turns": ["...", "..."]}',
    ),
    Layout(
        "steerlm2",
        PROMPTS,
        frozenset({"system", "prompt_turns", "responses"}),
        has("prompt_turns", "responses"),
        steerlm2,
        '{"system": "", "prompt_turns": [...], "label": "...", "responses": [...]}',
    ),
    Layout(
        "nemo_text",
        PROMPTS,
        frozenset({"text"}),
        has("text"),
        rendered,
        '{"text": "<extra_id_0>System\\n\\n<extra_id_1>User\\n...\\n<extra_id_1>Assistant\\n"}',
        last_resort=True,
    ),
    Layout(
        "instruction",
        PROMPTS,
        frozenset({"instruction", "input"}),
        has("instruction"),
        instruction,
        '{"instruction": "...", "input": "..."}',
        last_resort=True,
    ),
    *(
        Layout(
            name,
            PROMPTS,
            frozenset({name, *SYSTEMS}),
            has(name, without=("instruction",)),
            bare(name),
            f'{{"{name}": "..."}}',
            last_resort=True,
        )
        for name in ("prompt", "question", "problem", "query", "input")
    ),
)
