"""The body of ``POST /v1/score``, and the errors that name what is wrong with one.

::

    {"conversations": [[{"role": "user", "content": "..."}, {"role": "assistant", ...}], ...],
     "ids": ["...", ...]}                                      ids: optional, given back as they are
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from nemotron_style.steps.blocks.http.error import HttpError, is_text, read_json, shorten
from nemotron_style.steps.blocks.reward.types import ROLES, Message, RewardScore

KEYS = {"conversations", "ids"}
LONGEST_ID = 200


@dataclass(frozen=True)
class ScoreRequest:
    """Conversations to score; ``ids`` is empty or has one for each."""

    conversations: list[list[Message]]
    ids: list[str]


def parse_score_request(body: bytes, *, most: int) -> ScoreRequest:
    """Raises ``HttpError``: 400 for invalid JSON, 413 for too much, 422 for a wrong field."""
    fields = read_json(body)
    if not isinstance(fields, dict):
        invalid("body", "must be an object with the field conversations")
    for key in set(fields) - KEYS:
        invalid(shorten(key), "is not a field; there are conversations and ids")
    conversations = fields.get("conversations")
    if not isinstance(conversations, list) or not conversations:
        invalid("conversations", "must be a list of at least one conversation")
    if len(conversations) > most:
        message = f"conversations: {len(conversations)} of them; one request may hold {most}"
        raise HttpError(413, "too_many", message)
    for index, conversation in enumerate(conversations):
        check_conversation(conversation, f"conversations[{index}]")
    return ScoreRequest(conversations, check_ids(fields.get("ids"), len(conversations)))


def check_conversation(conversation: Any, where: str) -> None:
    """Turns with a role and text, the last one the assistant's."""
    if not isinstance(conversation, list) or not conversation:
        invalid(where, "must be a list of at least one message")
    for number, message in enumerate(conversation):
        check_message(message, f"{where}[{number}]")
    if conversation[-1]["role"] != "assistant":
        invalid(where, "must end with the assistant's turn, which is what is scored")


def check_message(message: Any, where: str) -> None:
    """``{"role", "content"}``, text that can be written as UTF-8, and nothing else."""
    if not isinstance(message, dict) or set(message) != {"role", "content"}:
        got = sorted(map(str, message)) if isinstance(message, dict) else message
        invalid(where, f"must have exactly role and content, got {shorten(got)}")
    role, content = message["role"], message["content"]
    if role not in ROLES:
        invalid(f"{where}.role", f"must be one of {', '.join(ROLES)}, got {shorten(role)}")
    if not isinstance(content, str):
        invalid(f"{where}.content", f"must be text, got {shorten(content)}")
    if not is_text(content):
        invalid(f"{where}.content", "holds half a surrogate pair, which is no text")


def check_ids(ids: Any, wanted: int) -> list[str]:
    """As many short texts as there are conversations, or none at all."""
    if ids is None:
        return []
    if not isinstance(ids, list) or len(ids) != wanted:
        invalid("ids", f"must be a list of {wanted}, one for each conversation")
    for index, one in enumerate(ids):
        if not isinstance(one, str) or not 0 < len(one) <= LONGEST_ID:
            invalid(f"ids[{index}]", f"must be text of 1 to {LONGEST_ID} characters")
    return ids


def invalid(where: str, what: str) -> NoReturn:
    """Raise the ``HttpError`` (422) that names the place."""
    raise HttpError(422, "invalid", f"{where}: {what}")


def write_answer(
    model: str, scores: Sequence[RewardScore], ids: Sequence[str]
) -> Mapping[str, Any]:
    """The answer, in the order of the request."""
    results: list[dict[str, Any]] = [
        {"score": one.score, "attributes": dict(one.attributes)} for one in scores
    ]
    for result, name in zip(results, ids, strict=False):
        result["id"] = name
    return {"model": model, "results": results}
