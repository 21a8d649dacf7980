"""Answers that ended and cannot be used: an error when most of them are such."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from nemotron_style.runtime.errors import Problem, StepFailed
from nemotron_style.steps.blocks.data.chat.interface import Chat
from nemotron_style.steps.blocks.data.jsonl import brief

FEWEST = 8
"""Of fewer answers nothing is concluded."""
SHOWN = 2


class Sampled(NamedTuple):
    """Tokens of an answer, whether the model ended it, and whether it can be used."""

    ids: Sequence[int]
    finished: bool
    usable: bool


def require_usable(chat: Chat, samples: Iterable[Sampled]) -> None:
    """Raise StepFailed when most answers that ended cannot be used, with the text of two.

    An answer also ended where it holds an ``eos_token_id`` of the checkpoint that this format
    does not stop at: that is how a model looks that is asked in a format it does not know.
    """
    ends = set(chat.tokenizer.eos_ids)
    ended = [one for one in samples if one.finished or not ends.isdisjoint(one.ids)]
    unusable = [one for one in ended if not one.usable]
    if len(ended) < FEWEST or 2 * len(unusable) <= len(ended):
        return
    texts = " and ".join(brief(chat.tokenizer.decode(one.ids)) for one in unusable[:SHOWN])
    unknown = (
        "the model does not write these chat_prompt_tokens: train it with them first (sft/chat), "
        "or leave them out where the model came with a chat template"
    )
    empty = "look at what the model says: empty answers, or turns inside of answers"
    raise StepFailed(
        Problem(
            what="most of the answers that ended cannot be used: they are empty, hold control "
            "tokens, or end otherwise than in this chat format",
            got=f"{len(unusable)} of {len(ended)}, such as {texts}",
            allowed="half of them",
            fix=unknown if chat.tokens else empty,
        )
    )
