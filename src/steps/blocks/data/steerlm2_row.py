"""Rows of ``steerlm2_jsonl``: a prompt, its label, and responses with their three log-probs.

NeMo-Aligner's format, one object a line::

    {"system": str, "prompt_turns": [{"from", "value"}, ...], "label": str | null,
     "responses": [{"from", "value",
                    "log(P(a|x,y))", "log(P(y|x))", "log(Q(y|a,x))"}, ...]}

The numbers are only worth something when they were computed for exactly the text that is trained
on, so nothing here is mended: a row is used whole or refused with its file and line.  In
particular no response is ever cut to length, because its log-probability covers the whole of it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nemotron_style.runtime.errors import InputError, Problem, raise_all
from nemotron_style.steps.blocks.data.chat_format import ChatFormat
from nemotron_style.steps.blocks.data.conversation import Conversation, Turn
from nemotron_style.steps.blocks.data.jsonl import brief, read_rows

LOG_P_A = "log(P(a|x,y))"
LOG_P_Y = "log(P(y|x))"
LOG_Q = "log(Q(y|a,x))"
LOG_FIELDS = (LOG_P_A, LOG_P_Y, LOG_Q)
ROW_FIELDS = ("system", "prompt_turns", "label", "responses")
TURN_FIELDS = ("from", "value")
RESPONSE_FIELDS = ("from", "value", *LOG_FIELDS)

Encode = Callable[[str], list[int]]


@dataclass(frozen=True)
class ScoredGroup:
    """A row as the texts that are tokenised and the numbers that were computed for them."""

    prompt: str
    responses: tuple[str, ...]
    log_p_a: tuple[float, ...]
    log_p_y: tuple[float, ...]
    log_q: tuple[float, ...]


@dataclass(frozen=True)
class EncodedGroup:
    """A row as token ids; prompt and response were tokenised apart, so the mask is exact."""

    prompt_ids: tuple[int, ...]
    responses_ids: tuple[tuple[int, ...], ...]
    log_p_a: tuple[float, ...]
    log_p_y: tuple[float, ...]
    log_q: tuple[float, ...]


def read_groups(
    path: str | Path, *, chat: ChatFormat, encode: Encode, max_tokens: int
) -> list[EncodedGroup]:
    """Every row of a file, checked and tokenised.

    ``max_tokens`` is the longest prompt with a response that the model can hold.

    Raises:
        InputError: with ``file:line`` for every rule that a row breaks (see :func:`parse_row`),
            for a row with another number of responses than the first one, and for a row that is
            too long. All bad rows are counted, the first ten are shown.
    """
    widths: list[int] = []

    def parse(row: Mapping[str, Any]) -> EncodedGroup:
        group = parse_row(row, chat=chat)
        widths.append(len(group.responses))
        if widths[-1] != widths[0]:
            raise InputError(
                Problem(
                    key="responses",
                    what="all rows of a file must have the same number of responses",
                    got=str(widths[-1]),
                    allowed=f"{widths[0]}, as in the first row",
                )
            )
        return encode_group(group, encode=encode, max_tokens=max_tokens)

    return read_rows(path, parse)


def encode_group(group: ScoredGroup, *, encode: Encode, max_tokens: int) -> EncodedGroup:
    """The group as token ids. Raises ``InputError`` when a response would have to be cut."""
    prompt_ids = tuple(encode(group.prompt))
    responses_ids = tuple(tuple(encode(response)) for response in group.responses)
    lengths = [len(prompt_ids) + len(ids) for ids in responses_ids]
    if (longest := max(lengths)) > max_tokens:
        many = sum(length > max_tokens for length in lengths)
        raise InputError(
            Problem(
                key=f"responses[{lengths.index(longest)}]",
                what="too long for the model, and it is not cut: log Q covers the whole of it",
                got=f"{longest} tokens with its prompt; {many} of {len(lengths)} too long",
                allowed=f"at most {max_tokens} tokens",
                fix="leave the row out, or sample with a smaller limit on new tokens",
            )
        )
    return EncodedGroup(prompt_ids, responses_ids, group.log_p_a, group.log_p_y, group.log_q)


def parse_row(row: Mapping[str, Any], *, chat: ChatFormat) -> ScoredGroup:
    """A row, checked field by field and rendered in ``chat``'s format.

    Raises:
        InputError: a missing, unknown or mistyped field, an even number of turns, fewer than two
            responses, responses by different speakers or by the one who asked, a response that
            was truncated, a log-probability that is no finite number or above 0, a control token
            inside a value. All that is wrong with the row is told.
    """
    problems = _row_problems(row)
    raise_all(InputError, problems)
    responses = row["responses"]
    turns = tuple(Turn(turn["from"], turn["value"]) for turn in row["prompt_turns"])
    question = Conversation(row["system"], turns)
    return ScoredGroup(
        prompt=chat.prompt(question, label=row["label"], speaker=responses[0]["from"]),
        responses=tuple(chat.response(response["value"]) for response in responses),
        log_p_a=tuple(float(response[LOG_P_A]) for response in responses),
        log_p_y=tuple(float(response[LOG_P_Y]) for response in responses),
        log_q=tuple(float(response[LOG_Q]) for response in responses),
    )


def _row_problems(row: Mapping[str, Any]) -> list[Problem]:
    problems = _field_problems(row, ROW_FIELDS, at="")
    if problems:
        return problems
    if not isinstance(row["system"], str):
        problems.append(_mistyped("system", row["system"], "a text, which may be empty"))
    label = row["label"]
    if label is not None and not (isinstance(label, str) and label):
        problems.append(_mistyped("label", label, "a text that is not empty, or null"))
    problems += _turn_problems(row["prompt_turns"])
    problems += _response_problems(row["responses"])
    return problems or _speaker_problems(row["prompt_turns"], row["responses"])


def _turn_problems(turns: Any) -> list[Problem]:
    if not isinstance(turns, list):
        return [_mistyped("prompt_turns", turns, "a list of turns")]
    problems = []
    if len(turns) % 2 == 0:
        problems.append(
            Problem(
                key="prompt_turns",
                what="the number of turns must be odd, so that the user speaks last",
                got=str(len(turns)),
            )
        )
    for place, turn in enumerate(turns):
        at = f"prompt_turns[{place}]"
        problems += _field_problems(turn, TURN_FIELDS, at=at) or _text_problems(turn, at)
    return problems


def _response_problems(responses: Any) -> list[Problem]:
    if not isinstance(responses, list):
        return [_mistyped("responses", responses, "a list of responses")]
    if len(responses) < 2:
        what = "a group needs at least two responses: alone, one has weight 1 and teaches nothing"
        return [Problem(key="responses", what=what, got=str(len(responses)))]
    problems = []
    for place, response in enumerate(responses):
        at = f"responses[{place}]"
        if isinstance(response, dict) and "truncated" in response:
            problems += _truncation_problems(response["truncated"], at)
            response = {name: value for name, value in response.items() if name != "truncated"}
        wrong = _field_problems(response, RESPONSE_FIELDS, at=at)
        problems += wrong or [*_text_problems(response, at), *_number_problems(response, at)]
    return problems


def _truncation_problems(truncated: Any, at: str) -> list[Problem]:
    if truncated is False:
        return []
    return [
        Problem(
            key=f"{at}.truncated",
            what="a truncated response cannot be weighed: its log-probs lack the end",
            got=brief(truncated),
            allowed="false",
            fix="leave the row out, or sample again with a larger limit on new tokens",
        )
    ]


def _speaker_problems(turns: Sequence[Any], responses: Sequence[Any]) -> list[Problem]:
    speakers = [response["from"] for response in responses]
    if len(set(speakers)) > 1:
        what = "all responses of a row must have the same `from`"
        return [Problem(key="responses", what=what, got=", ".join(sorted(set(speakers))))]
    if turns[-1]["from"] == speakers[0]:
        what = "the last turn is by the one who responds; it must be the user's"
        return [Problem(key="prompt_turns", what=what, got=brief(speakers[0]))]
    return []


def _field_problems(value: Any, fields: Sequence[str], *, at: str) -> list[Problem]:
    """Missing and unknown fields of an object."""
    if not isinstance(value, Mapping):
        return [_mistyped(at, value, f"an object with {', '.join(fields)}")]
    prefix = f"{at}." if at else ""
    missing = [name for name in fields if name not in value]
    unknown = sorted(set(value) - set(fields))
    return [
        *(Problem(key=prefix + name, what="missing field") for name in missing),
        *(
            Problem(key=prefix + name, what="unknown field", allowed=", ".join(fields))
            for name in unknown
        ),
    ]


def _text_problems(value: Mapping[str, Any], at: str) -> list[Problem]:
    return [
        _mistyped(f"{at}.{name}", value[name], "a text")
        for name in TURN_FIELDS
        if not isinstance(value[name], str)
    ]


def _number_problems(response: Mapping[str, Any], at: str) -> list[Problem]:
    return [
        _mistyped(f"{at}.{name}", response[name], "a finite number that is not above 0")
        for name in LOG_FIELDS
        if not _is_logprob(response[name])
    ]


def _is_logprob(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return value <= 0 and math.isfinite(value)


def _mistyped(key: str, got: Any, allowed: str) -> Problem:
    return Problem(key=key, what="wrong type or value", got=brief(got), allowed=allowed)
