"""Layouts that say what an answer is worth: ratings, pairs of which one is better, comparisons."""

from __future__ import annotations

from typing import Any

from nemotron_style.steps.blocks.data.files.refusal import brief, is_number, refuse
from nemotron_style.steps.blocks.data.layouts.conversations import (
    SYSTEMS,
    has,
    is_nemo,
    nemo_conversation,
    refuse_more,
)
from nemotron_style.steps.blocks.data.layouts.layout import Layout, OwnRow, Row, Use
from nemotron_style.steps.blocks.data.layouts.turns import (
    OPENAI,
    Message,
    read_answer,
    read_extra_id,
    read_prompt,
    read_transcript,
    read_turns,
    said,
    with_system,
)

RATINGS: frozenset[Use] = frozenset({"ratings"})
PAIRS: frozenset[Use] = frozenset({"ratings", "comparisons"})

HELPSTEER = ("helpfulness", "correctness", "coherence", "complexity", "verbosity")
NOT_RATINGS = ("id", "idx", "index", "row", "row_id", "prompt_id", "conversation_id", "turn")
"""Columns of numbers that rate nothing."""

_NEMO_REGRESSION = ("quality", "toxicity", "humor", "creativity", *HELPSTEER)
"""What the nine numbers of NeMo-Aligner's ``label`` lists rate, in their order."""

_UNRATED = -100


def rated_messages(row: Row, unused: set[str]) -> OwnRow:
    """Our own ``messages`` with ``attributes``."""
    refuse_more(row)
    turns = read_turns(row["messages"], "messages", OPENAI, unused)
    return {"messages": turns, "attributes": row["attributes"]}


def helpsteer(row: Row, unused: set[str]) -> OwnRow:
    """HelpSteer's ``prompt`` and ``response``: its other columns of numbers are ratings.

    Prompts of HelpSteer2 hold earlier turns behind ``<extra_id_1>``.
    """
    refuse_more(row)
    turns = [*read_prompt(row, "prompt", unused), *read_answer(row, "response", unused)]
    ratings = {}
    for name, value in row.items():
        if name in ("prompt", "response", *NOT_RATINGS) or value is None:
            continue
        if is_number(value) or name in _NEMO_REGRESSION:
            ratings[name] = value
        else:
            unused.add(name)
    return {"messages": turns, "attributes": ratings}


def nemo_rated(row: Row, unused: set[str]) -> OwnRow:
    """NeMo's ``conversations`` whose last turn has a label, as in ``helpfulness:4,verbosity:2``."""
    own = nemo_conversation(row, unused)
    label = own.pop("label", None)
    own.pop("type", None)
    if not isinstance(label, str) or not label:
        what = "the last turn has no label, so nothing is rated"
        refuse(what, key="conversations[-1].label", got=brief(label))
    ratings: dict[str, Any] = {}
    for part in label.split(","):
        name, _, value = part.partition(":")
        try:
            ratings[name.strip()] = float(value)
        except ValueError:
            allowed = "helpfulness:4,correctness:4,..."
            refuse("is no rating", key="conversations[-1].label", got=brief(part), allowed=allowed)
    return own | {"attributes": ratings}


def nemo_regression(row: Row, unused: set[str]) -> OwnRow:
    """NeMo-Aligner's regression rows: a rendered ``text``, and a list of nine numbers."""
    label = row["label"]
    if len(label) != len(_NEMO_REGRESSION):
        refuse(
            "nothing says what each number rates",
            key="label",
            got=f"{len(label)} numbers",
            allowed=f"{len(_NEMO_REGRESSION)}: {', '.join(_NEMO_REGRESSION)}",
            fix="write messages with attributes, which have names",
        )
    # the marker behind the answer asks the attribute model for its label; it is no part of it
    text = str(row["text"]).removesuffix("<extra_id_2>").removesuffix("\n")
    numbered = zip(_NEMO_REGRESSION, label, strict=True)
    ratings = {name: None if value == _UNRATED else value for name, value in numbered}
    return {"messages": read_extra_id(text, "text"), "attributes": ratings}


def pair(row: Row, unused: set[str]) -> OwnRow:
    """``chosen`` and ``rejected``: whole conversations, or the answers to a prompt beside them."""
    refuse_more(row)
    sides = {side: _side(row, side, unused) for side in ("chosen", "rejected")}
    margin = row.get("margin")
    return sides if margin is None else sides | {"margin": margin}


def _side(row: Row, side: str, unused: set[str]) -> list[Message]:
    """One side as messages that end with its answer."""
    value = row[side]
    prompt = next((name for name in ("prompt", "question", "input") if row.get(name)), None)
    asked = read_prompt(row, prompt, unused) if prompt else []
    if isinstance(value, list):
        turns = read_turns(value, side, OPENAI, unused)
        if turns[0]["role"] == "assistant" and asked:
            turns = [*asked, *turns]
        elif asked and not _begins_with(turns, asked):
            what = f"{side} does not begin with {prompt}"
            refuse(what, key=side, got=brief(turns[0]["content"]), allowed=brief(row[prompt]))
    elif isinstance(value, str) and not prompt:
        turns = read_transcript(value, side)
    else:
        turns = [*asked, *read_answer(row, side, unused)]
    for name in SYSTEMS:
        turns = with_system(row.get(name), turns, name)
    return turns


def _begins_with(turns: list[Message], asked: list[Message]) -> bool:
    """Whether a conversation begins with what was asked, but for a system message."""
    spoken = [turn for turn in turns if turn["role"] != "system"]
    wanted = [turn for turn in asked if turn["role"] != "system"]
    return spoken[: len(wanted)] == wanted or (
        # data sets of several turns keep the last question, or the first, in that column
        len(wanted) == 1 and wanted[0] in spoken
    )


def nemo_dpo(row: Row, unused: set[str]) -> OwnRow:
    """NeMo-Aligner's ``prompt``, ``chosen_response`` and ``rejected_response``."""
    asked = read_prompt(row, "prompt", unused)
    names = {"chosen": "chosen_response", "rejected": "rejected_response"}
    return {side: [*asked, *read_answer(row, name, unused)] for side, name in names.items()}


def helpsteer3(row: Row, unused: set[str]) -> OwnRow:
    """HelpSteer3's ``context``, ``response1``, ``response2`` and ``overall_preference``."""
    preference = row["overall_preference"]
    if not is_number(preference) or preference == 0:
        what = "neither response is better" if preference == 0 else "must be a number"
        refuse(what, key="overall_preference", got=brief(preference), allowed="-3 to 3, but 0")
    asked = read_turns(row["context"], "context", OPENAI, unused)
    names = ("response1", "response2") if preference < 0 else ("response2", "response1")
    sides = zip(("chosen", "rejected"), names, strict=True)
    return {side: [*asked, *read_answer(row, name, unused)] for side, name in sides}


def ranked(row: Row, unused: set[str]) -> OwnRow:
    """NeMo-RL's ``context`` and two ``completions``, of which the one of lower rank is better."""
    both = sorted(row["completions"], key=lambda one: one["rank"])
    ranks = [one["rank"] for one in both]
    if len(both) != 2 or ranks[0] == ranks[1]:
        what, fix = "a pair is two answers of two ranks", "write a row of each pair"
        refuse(what, key="completions[].rank", got=brief(ranks), allowed="[0, 1]", fix=fix)
    asked = read_prompt(row, "context", unused)
    chosen, rejected = ([*asked, *read_answer(one, "completion", unused)] for one in both)
    return {"chosen": chosen, "rejected": rejected}


def comparison(row: Row, unused: set[str]) -> OwnRow:
    """Our own ``messages`` that end with both responses, and the ``truth``."""
    return {"messages": row["messages"], "truth": row["truth"]}


def compared(row: OwnRow) -> OwnRow:
    """A pair as a comparison: the chosen answer is the first, and truly better.

    Raises InputError for sides that answer different prompts.
    """
    chosen, rejected = row["chosen"], row["rejected"]
    if chosen[:-1] != rejected[:-1]:
        what = "the two answers are to different prompts, so they cannot be compared"
        refuse(what, key="rejected", got=brief(rejected[:-1]), allowed=brief(chosen[:-1]))
    both = [said(f"response_{n}", side[-1]["content"]) for n, side in ((1, chosen), (2, rejected))]
    return {"messages": [*chosen[:-1], *both], "truth": {"score_1": 1, "score_2": 0}}


def _rated_columns(row: Row) -> bool:
    if not has("prompt", "response", without=("chosen",))(row):
        return False
    rest = {name: value for name, value in row.items() if name not in ("prompt", "response")}
    return any(
        name in _NEMO_REGRESSION or (is_number(value) and name not in NOT_RATINGS)
        for name, value in rest.items()
    )


def _is_regression(row: Row) -> bool:
    return isinstance(row.get("text"), str) and isinstance(row.get("label"), list)


def _is_ranked(row: Row) -> bool:
    completions = row.get("completions")
    return (
        has("context")(row)
        and isinstance(completions, list)
        and all(
            isinstance(one, dict) and is_number(one.get("rank")) and "completion" in one
            for one in completions
        )
    )


JUDGED = (
    Layout(
        "rated_messages",
        RATINGS,
        frozenset({"messages", "attributes"}),
        has("messages", "attributes"),
        rated_messages,
        '{"messages": [...], "attributes": {"helpfulness": 4}}',
    ),
    Layout(
        "helpsteer",
        RATINGS,
        None,
        _rated_columns,
        helpsteer,
        '{"prompt": "...", "response": "...", "helpfulness": 4, "correctness": 4, ...}',
    ),
    Layout(
        "nemo_labels",
        RATINGS,
        frozenset({"conversations", "system", "mask", "type"}),
        is_nemo,
        nemo_rated,
        '{"mask": "User", "conversations": [..., {"from": "Assistant", "label": "helpfulness:4"}]}',
    ),
    Layout(
        "nemo_regression",
        RATINGS,
        frozenset({"text", "label"}),
        _is_regression,
        nemo_regression,
        '{"text": "<extra_id_0>System\\n...<extra_id_2>", "label": [-100, ..., 4, 4, 4, 2, 2]}',
    ),
    Layout(
        "pairs",
        PAIRS,
        frozenset({"chosen", "rejected", "margin", "prompt", "question", "input", *SYSTEMS}),
        has("chosen", "rejected"),
        pair,
        '{"prompt": "...", "chosen": ..., "rejected": ...}',
    ),
    Layout(
        "nemo_dpo",
        PAIRS,
        frozenset({"prompt", "chosen_response", "rejected_response"}),
        has("prompt", "chosen_response", "rejected_response"),
        nemo_dpo,
        '{"prompt": "<extra_id_0>...", "chosen_response": "...", "rejected_response": "..."}',
    ),
    Layout(
        "helpsteer3",
        PAIRS,
        frozenset({"context", "response1", "response2", "overall_preference"}),
        has("context", "response1", "response2", "overall_preference"),
        helpsteer3,
        '{"context": [...], "response1": "...", "response2": "...", "overall_preference": -2}',
    ),
    Layout(
        "nemo_rl_pairs",
        PAIRS,
        frozenset({"context", "completions"}),
        _is_ranked,
        ranked,
        '{"context": [...], "completions": [{"rank": 0, "completion": [...]}, {"rank": 1, ...}]}',
    ),
    Layout(
        "comparisons",
        frozenset({"comparisons"}),
        frozenset({"messages", "truth"}),
        has("messages", "truth"),
        comparison,
        '{"messages": [..., {"role": "response_1", ...}], "truth": {"score_1": 4, "score_2": 2}}',
    ),
)
