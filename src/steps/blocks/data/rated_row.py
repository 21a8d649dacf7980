"""Rows of ``rated_jsonl``: answered conversations with numbers, or two of which one is better.

::

    {"messages": [..., {"role": "assistant", ...}], "attributes": {"helpfulness": 3}}
    {"prompt": "...", "response": "...", "helpfulness": 3, "verbosity": 1}      HelpSteer's
    {"chosen": [... messages], "rejected": [... messages], "margin": 0.5}

An attribute that is absent or null was not rated. A pair may have a margin by which the better
answer should lead.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from nemotron_style.runtime.errors import InputError
from nemotron_style.steps.blocks.data.conversation import Conversation, parse_conversation
from nemotron_style.steps.blocks.data.jsonl import brief, is_number, refuse

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]*")
_LAYOUTS = "messages and attributes, prompt and response, or chosen and rejected"


@dataclass(frozen=True)
class RatedRow:
    """A conversation that ends with the assistant, and what it was rated; at least one number."""

    conversation: Conversation
    attributes: Mapping[str, float]


@dataclass(frozen=True)
class PairRow:
    """Two conversations of which the first is better, by ``margin`` or more."""

    chosen: Conversation
    rejected: Conversation
    margin: float = 0.0


def parse_rated(row: Mapping[str, Any], *, missing: float | None = None) -> RatedRow | PairRow:
    """A row of ``rated_jsonl``; a rating equal to ``missing`` counts as none.

    Raises:
        InputError: a conversation that does not end with the assistant, ratings that are no
            finite numbers, no rating at all, a pair of equal sides, an unknown key.
    """
    if "chosen" in row or "rejected" in row:
        return _parse_pair(row)
    if "messages" in row:
        _refuse_others(row, {"messages", "attributes"})
        conversation, ratings = _conversation(row, "messages"), row.get("attributes")
    elif "prompt" in row and "response" in row:
        asked, said = row["prompt"], row["response"]
        messages = [{"role": "user", "content": asked}, {"role": "assistant", "content": said}]
        conversation = parse_conversation({"messages": messages})
        ratings = {name: row[name] for name in row if name not in ("prompt", "response")}
    else:
        refuse(
            "a row is rated or a pair", got=", ".join(row) or "an empty object", allowed=_LAYOUTS
        )
    return RatedRow(conversation, _ratings(ratings, missing))


def _parse_pair(row: Mapping[str, Any]) -> PairRow:
    _refuse_others(row, {"chosen", "rejected", "margin"})
    for side in ("chosen", "rejected"):
        if side not in row:
            refuse("a pair needs both sides", key=side, got=", ".join(row))
    chosen, rejected = _conversation(row, "chosen"), _conversation(row, "rejected")
    if chosen == rejected:
        refuse("chosen and rejected are the same", key="rejected", fix="remove the row")
    margin = _number(row.get("margin", 0.0), "margin")
    if margin < 0:
        refuse("a margin is not negative", key="margin", got=brief(margin))
    return PairRow(chosen, rejected, margin)


def _conversation(row: Mapping[str, Any], key: str) -> Conversation:
    """The conversation under ``key``; problems name that key."""
    try:
        return parse_conversation({"messages": row[key]})
    except InputError as error:
        raise InputError(
            replace(problem, key=problem.key.replace("messages", key, 1))
            for problem in error.problems
        ) from error


def _ratings(ratings: Any, missing: float | None) -> dict[str, float]:
    if not isinstance(ratings, Mapping):
        refuse("attributes map names to numbers", key="attributes", got=brief(ratings))
    for name in ratings:
        if not _NAME.fullmatch(name):
            refuse("this cannot be the name of an attribute", key="attributes", got=brief(name))
    rated = {name: _number(value, name) for name, value in ratings.items() if value is not None}
    rated = {name: value for name, value in rated.items() if value != missing}
    if not rated:
        refuse("no attribute is rated", key="attributes", got=brief(ratings), fix="remove the row")
    return rated


def _number(value: Any, key: str) -> float:
    if not is_number(value):
        refuse("a rating must be a finite number", key=key, got=brief(value))
    return float(value)


def _refuse_others(row: Mapping[str, Any], keys: set[str]) -> None:
    if extra := sorted(set(row) - keys):
        refuse("unknown key", key=extra[0], allowed=", ".join(sorted(keys)))
