"""Rows of ``comparison_jsonl``: a conversation, two responses to it, and the scores they deserve.

::

    {"messages": [..., {"role": "user", ...}, {"role": "response_1", ...},
                  {"role": "response_2", ...}],
     "truth": {"score_1": 4, "score_2": 2}}

A ``principle`` may stand before the responses. A judgement in the assistant's role may stand
behind them and is not shown to the judge. Of the true scores only the order counts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from nemotron_style.steps.blocks.data.conversation import PAIR_ROLES, parse_messages
from nemotron_style.steps.blocks.data.jsonl import brief, is_number, refuse
from nemotron_style.steps.blocks.judge.prompt import Question

SCORES = ("score_1", "score_2")


@dataclass(frozen=True)
class Comparison:
    """A question to the judge, and the true scores of its two responses."""

    question: Question
    truth: tuple[float, float]

    @property
    def swapped(self) -> Comparison:
        """The same responses in the other order."""
        first, second = self.question.response_1, self.question.response_2
        swapped = replace(self.question, response_1=second, response_2=first)
        return Comparison(swapped, self.truth[::-1])

    @property
    def lead(self) -> float:
        """Above 0 where the first response is truly better; 0 where neither is."""
        return self.truth[0] - self.truth[1]


def parse_comparison(row: Mapping[str, Any]) -> Comparison:
    """A row as a comparison.

    Raises:
        InputError: messages that do not end with both responses, a true score that is missing or
            no finite number, an unknown key.
    """
    for key in ("messages", "truth"):
        if key not in row:
            refuse("a comparison has messages and truth", key=key, got=", ".join(row) or "nothing")
    if extra := sorted(set(row) - {"messages", "truth"}):
        refuse("unknown key", key=extra[0], allowed="messages, truth")
    messages = _without_judgement(row["messages"])
    parse_messages(messages)
    roles = [message["role"] for message in messages]
    if roles[-2:] != PAIR_ROLES:
        refuse("nothing is compared", key="messages", got=", ".join(roles), allowed=_ENDS)
    texts = {message["role"]: message["content"] for message in messages[-3:]}
    history = [message for message in messages if message["role"] not in _NOT_HISTORY]
    question = Question(
        tuple(history), texts["response_1"], texts["response_2"], texts.get("principle")
    )
    return Comparison(question, _truth(row["truth"]))


_NOT_HISTORY = {"principle", *PAIR_ROLES}
_ENDS = "messages that end with response_1 and response_2"


def _without_judgement(messages: Any) -> list[Any]:
    if not isinstance(messages, list) or not messages:
        refuse("messages must be a list that is not empty", key="messages", got=brief(messages))
    last = messages[-1]
    judged = isinstance(last, Mapping) and last.get("role") == "assistant"
    return messages[:-1] if judged else messages


def _truth(scores: Any) -> tuple[float, float]:
    if not isinstance(scores, Mapping) or set(scores) != set(SCORES):
        refuse("the truth is a score for each response", key="truth", got=brief(scores))
    for name in SCORES:
        if not is_number(scores[name]):
            got = brief(scores[name])
            refuse("a true score must be a finite number", key=f"truth.{name}", got=got)
    return float(scores["score_1"]), float(scores["score_2"])
