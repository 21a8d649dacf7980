"""Layouts of conversations: lists of turns, and a question with its answer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from nemotron_style.runtime.errors import suggest
from nemotron_style.steps.blocks.data.files.refusal import brief, refuse
from nemotron_style.steps.blocks.data.layouts.layout import Layout, OwnRow, Row, Use
from nemotron_style.steps.blocks.data.layouts.turns import (
    OPENAI,
    SHAREGPT,
    Message,
    Style,
    read_answer,
    read_prompt,
    read_text,
    read_turn,
    read_turns,
    read_weights,
    said,
    with_system,
)

ANSWERED: frozenset[Use] = frozenset({"training", "prompts"})
"""The uses of an answered conversation; as a prompt it ends before its answer."""

OWN_COLUMNS = ("label", "type", "trained")
"""What a row of our own has beside its messages."""

SYSTEMS = ("system", "system_prompt")
"""Columns that hold a system message."""

TOOLS = ("tools", "functions")
PICTURES = ("image", "images", "audio", "video", "videos")
BESIDE = ("context", "input", "choices", "options", "passage", "document", "history")
"""Columns that may be part of a question; a layout that does not know how refuses them."""


def messages(row: Row, unused: set[str]) -> OwnRow:
    """``messages`` of OpenAI, with our own ``label`` and ``type``."""
    refuse_more(row)
    turns = read_turns(row["messages"], "messages", OPENAI, unused)
    own: OwnRow = {"messages": _with_system_columns(row, turns)}
    if marks := read_weights(row["messages"], "messages", OPENAI):
        own["trained"] = marks
    for name in row:
        if name not in ("messages", *OWN_COLUMNS) and row[name] is not None:
            _refuse_misspelling(name)
    return own | {name: row[name] for name in OWN_COLUMNS if row.get(name) is not None}


def sharegpt(row: Row, unused: set[str]) -> OwnRow:
    """``conversations`` of ShareGPT: ``from`` and ``value``, or OpenAI's names."""
    refuse_more(row)
    turns, style = row["conversations"], _style(row["conversations"])
    read = read_turns(turns, "conversations", style, unused)
    own: OwnRow = {"messages": _with_system_columns(row, read)}
    marks = read_weights(turns, "conversations", style)
    return own | ({"trained": marks} if marks else {})


def _style(turns: Any) -> Style:
    is_openai = isinstance(turns, list) and turns and isinstance(turns[0], dict)
    return OPENAI if is_openai and "role" in turns[0] and "from" not in turns[0] else SHAREGPT


def is_nemo(row: Row) -> bool:
    """Whether a row is NeMo's: ``conversations`` with the name of the speaker that is masked."""
    return isinstance(row.get("conversations"), list) and "mask" in row


def nemo_conversation(row: Row, unused: set[str]) -> OwnRow:
    """NeMo's ``conversations`` with ``mask``, ``system``, ``type`` and the labels of turns."""
    refuse_more(row)
    mask, kind, turns = row["mask"], row.get("type"), row["conversations"]
    if not isinstance(mask, str) or not mask:
        refuse("must be the name of the speaker that is not trained", key="mask", got=brief(mask))
    if not isinstance(turns, list) or not turns:
        refuse("must be a list of turns that is not empty", key="conversations", got=brief(turns))
    style = Style("from", "value", {mask: "user"} | _other_speakers(turns, mask))
    read, labels = [], []
    for index, turn in enumerate(turns):
        key = f"conversations[{index}]"
        plain = {name: value for name, value in turn.items() if name != "label"}
        read.append(read_turn(plain, key, style, unused, "conversations[]"))
        labels.append(turn.get("label"))
    for index, label in enumerate(labels[:-1]):
        if label is not None:
            what = "a label is read with the last turn alone"
            fix = "make a row of each answer that has a label"
            refuse(what, key=f"conversations[{index}].label", got=brief(label), fix=fix)
    own: OwnRow = {"messages": with_system(row.get("system"), read, "system")}
    # rows of plain answers have the type VALUE_TO_TEXT, too, and no label
    if labels[-1] is None and kind in (None, "", "VALUE_TO_TEXT"):
        return own
    return own | {"label": labels[-1], "type": kind or None}


def _other_speakers(turns: list[Any], mask: str) -> dict[str, str]:
    """The one speaker that is trained, as the assistant."""
    names = [turn.get("from") for turn in turns if isinstance(turn, dict)]
    if len(names) < len(turns):
        refuse("a turn is an object with 'from' and 'value'", key="conversations")
    others = sorted({str(name) for name in names} - {mask})
    if len(others) > 1:
        what = "two speakers are trained; one of them can be the assistant"
        refuse(what, key="conversations", got=", ".join(others), allowed=f"{mask} and one more")
    return dict.fromkeys(others, "assistant")


def alpaca(row: Row, unused: set[str]) -> OwnRow:
    """Alpaca's ``instruction``, ``input`` below it after an empty line, and ``output``.

    ``history`` is LLaMA-Factory's: pairs of a question and an answer that come before.
    """
    refuse_pictures(row)
    answer = "output" if row.get("output") is not None else "response"
    below = "input" if row.get("input") else "context"
    instruction = read_prompt(row, "instruction", unused)
    given = read_text(row.get(below) or "", below)
    if given.strip():
        instruction[-1]["content"] += f"\n\n{given}"
    turns = [*_read_history(row.get("history")), *instruction, *read_answer(row, answer, unused)]
    return {"messages": _with_system_columns(row, turns)}


def _read_history(history: Any) -> list[Message]:
    if history is not None and not isinstance(history, list):
        refuse("must be a list of questions and answers", key="history", got=brief(history))
    turns = []
    for index, pair in enumerate(history or ()):
        if (
            not isinstance(pair, list)
            or len(pair) != 2
            or not all(isinstance(x, str) for x in pair)
        ):
            key = f"history[{index}]"
            refuse("must be a question and its answer", key=key, got=brief(pair))
        turns += [said("user", pair[0]), said("assistant", pair[1])]
    return turns


def question_and_answer(question: str, answer: str) -> Callable[[Row, set[str]], OwnRow]:
    """A reader of two columns, and of a column with a system message."""

    def read(row: Row, unused: set[str]) -> OwnRow:
        refuse_more(row)
        for name in BESIDE:
            if name not in (question, answer) and row.get(name):
                what = "this column may belong to the question, and nothing says how"
                fix = "put it into the text of the question, or remove the column"
                refuse(what, key=name, got=brief(row[name]), fix=fix)
        turns = [*read_prompt(row, question, unused), *read_answer(row, answer, unused)]
        return {"messages": _with_system_columns(row, turns)}

    return read


def refuse_more(row: Row) -> None:
    """Refuse a row whose turns were made with tools, or with more than text."""
    for name in TOOLS:
        if row.get(name) and row[name] != "[]":
            what = "the row offers tools, which no chat format here writes"
            refuse(what, key=name, got=brief(row[name]), fix="leave the row out")
    refuse_pictures(row)


def refuse_pictures(row: Row) -> None:
    """Refuse a row that shows more than text."""
    for name in PICTURES:
        if row.get(name):
            refuse("the row holds more than text", key=name, got=brief(row[name]))


def _with_system_columns(row: Row, turns: list[Message]) -> list[Message]:
    for name in SYSTEMS:
        turns = with_system(row.get(name), turns, name)
    return turns


def _refuse_misspelling(name: str) -> None:
    """Refuse a column that may be meant for one that decides what is trained."""
    if name.lower() not in ("labels", "types") and (near := suggest(name, ["label", "type"])):
        fix = f"{near} if not, remove or rename the column"
        refuse("unknown key", key=name, allowed="messages, label, type", fix=fix)


def has(*names: str, without: tuple[str, ...] = ()) -> Callable[[Row], bool]:
    """Whether a row has all of ``names``, and none of those it must be ``without``."""

    def fits(row: Row) -> bool:
        # Plain loops: it is asked a dozen times of each row, and mostly ends at the first name.
        for name in names:
            if row.get(name) is None:
                return False
        for name in without:  # noqa: SIM110
            if row.get(name) is not None:
                return False
        return True

    return fits


def _is_list(name: str) -> Callable[[Row], bool]:
    return lambda row: isinstance(row.get(name), list)


_PAIRS = (
    ("prompt", "completion"),
    ("prompt", "response"),
    ("question", "answer"),
    ("question", "response"),
    ("query", "response"),
    ("query", "answer"),
    ("problem", "solution"),
    ("input", "output"),
)

CONVERSATIONS = (
    Layout(
        "messages",
        ANSWERED,
        frozenset({"messages", *OWN_COLUMNS, *SYSTEMS}),
        _is_list("messages"),
        messages,
        '{"messages": [{"role": "user", "content": "..."}, {"role": "assistant", ...}]}',
    ),
    Layout(
        "sharegpt",
        ANSWERED,
        frozenset({"conversations", *SYSTEMS}),
        lambda row: isinstance(row.get("conversations"), list) and not is_nemo(row),
        sharegpt,
        '{"conversations": [{"from": "human", "value": "..."}, {"from": "gpt", ...}]}',
    ),
    Layout(
        "nemo",
        ANSWERED,
        frozenset({"conversations", "system", "mask", "type"}),
        is_nemo,
        nemo_conversation,
        '{"system": "...", "mask": "User", "conversations": [{"from": "User", "value": ...}, ...]}',
    ),
    Layout(
        "alpaca",
        ANSWERED,
        frozenset({"instruction", "input", "output", "history", *SYSTEMS}),
        has("instruction", "output"),
        alpaca,
        '{"instruction": "...", "input": "...", "output": "..."}',
    ),
    Layout(
        "dolly",
        ANSWERED,
        frozenset({"instruction", "context", "response", *SYSTEMS}),
        has("instruction", "response", without=("output",)),
        alpaca,
        '{"instruction": "...", "context": "...", "response": "..."}',
    ),
    *(
        Layout(
            f"{question}_{answer}",
            ANSWERED,
            frozenset({question, answer, *SYSTEMS}),
            has(question, answer, without=("instruction",)),
            question_and_answer(question, answer),
            f'{{"{question}": "...", "{answer}": "..."}}',
        )
        for question, answer in _PAIRS
    ),
)
