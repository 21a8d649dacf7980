"""The prompts of an evaluation, checked for both models and the truth before any is answered."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from nemotron_style.steps.blocks.checkpoint.model_checkpoint import TOKENIZER, read_config
from nemotron_style.steps.blocks.data.chat.interface import Chat
from nemotron_style.steps.blocks.data.chat.opening import open_chat
from nemotron_style.steps.blocks.data.chat_format import ChatPromptTokens
from nemotron_style.steps.blocks.data.conversation import (
    Conversation,
    parse_prompt_row,
)
from nemotron_style.steps.blocks.data.jsonl import refuse
from nemotron_style.steps.blocks.data.layouts.reader import RowReader
from nemotron_style.steps.blocks.data.tokenizer import Tokenizer
from nemotron_style.steps.blocks.data.toy_truth import Truth
from nemotron_style.steps.blocks.judge.prompt import Message


@dataclass(frozen=True)
class PromptLimit:
    """How a model writes prompts, and how many tokens of one its context holds (``room``)."""

    slot: str
    chat: Chat
    room: int

    @classmethod
    def of(
        cls, slot: str, path: Path, *, tokens: ChatPromptTokens | None, max_new_tokens: int
    ) -> Self:
        """The limit of a checkpoint, whose weights are not loaded."""
        tokenizer = Tokenizer(path / TOKENIZER)
        room = read_config(path).max_sequence_length - max_new_tokens
        return cls(slot, open_chat(tokenizer, tokens), room)

    def check(self, prompt: Conversation) -> None:
        """Refuse a prompt that leaves no room for an answer, or holds a control token."""
        count = len(self.chat.prompt_ids(prompt))
        if count > self.room:
            refuse(
                f"the prompt leaves {self.slot} no room for an answer, and it is not cut",
                key="messages",
                got=f"{count} tokens",
                allowed=f"{self.room}: its context less sampling.max_new_tokens",
                fix="leave the row out, or lower sampling.max_new_tokens",
            )


def read_prompts(
    path: Path, limits: Sequence[PromptLimit], *, truth: Truth | None, reader: RowReader
) -> list[Conversation]:
    """The different prompts of a file, in its order; of a row with an answer, what comes before.

    Raises InputError naming file and line of every row that has no prompt, or one that a model
    cannot read or the truth knows nothing about.
    """

    def parse(row: Mapping[str, Any]) -> Conversation:
        given = parse_prompt_row(row)
        prompt = Conversation(given.system, given.turns)
        for limit in limits:
            limit.check(prompt)
        if truth is not None:
            truth.noun_of(prompt.turns[-1].value)
        return prompt

    return list(dict.fromkeys(reader.read(path, parse)))


def as_messages(prompt: Conversation) -> tuple[Message, ...]:
    """A prompt as a judge is shown it."""
    return tuple(prompt.messages())
