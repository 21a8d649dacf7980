"""The prompts of an evaluation, checked for both models and the truth before any is answered."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from nemotron_style.steps.blocks.checkpoint.model_checkpoint import TOKENIZER, read_config
from nemotron_style.steps.blocks.data.chat_format import ChatFormat, ChatPromptTokens
from nemotron_style.steps.blocks.data.conversation import (
    ROLES,
    Conversation,
    parse_conversation,
    parse_prompt,
)
from nemotron_style.steps.blocks.data.jsonl import read_rows, refuse
from nemotron_style.steps.blocks.data.tokenizer import Tokenizer, open_chat
from nemotron_style.steps.blocks.data.toy_truth import Truth
from nemotron_style.steps.blocks.judge.prompt import Message


@dataclass(frozen=True)
class Reader:
    """A model as far as prompts are concerned; ``room`` is what its context leaves to them."""

    slot: str
    tokenizer: Tokenizer
    chat: ChatFormat
    room: int

    @classmethod
    def of(
        cls, slot: str, path: Path, *, tokens: ChatPromptTokens | None, max_new_tokens: int
    ) -> Self:
        """That of a checkpoint; its weights stay where they are."""
        tokenizer = Tokenizer(path / TOKENIZER)
        room = read_config(path).max_sequence_length - max_new_tokens
        return cls(slot, tokenizer, open_chat(tokenizer, tokens), room)

    def check(self, asked: Conversation) -> None:
        """Refuse a prompt that leaves no room for an answer, or holds a control token."""
        text = self.chat.prompt(asked)
        count = len(self.tokenizer.encode(text, control=True))
        if count > self.room:
            refuse(
                f"the prompt leaves {self.slot} no room for an answer, and it is not cut",
                key="messages",
                got=f"{count} tokens",
                allowed=f"{self.room}: its context less sampling.max_new_tokens",
                fix="leave the row out, or lower sampling.max_new_tokens",
            )


def read_prompts(
    path: Path, readers: Sequence[Reader], *, truth: Truth | None
) -> list[Conversation]:
    """The different prompts of a file, in its order; of a row with an answer, what comes before.

    Raises InputError naming file and line of every row that has no prompt, or one that a model
    cannot read or the truth knows nothing about.
    """

    def parse(row: Mapping[str, Any]) -> Conversation:
        asked = parse_asked(row)
        for reader in readers:
            reader.check(asked)
        if truth is not None:
            truth.noun_of(asked.turns[-1].value)
        return asked

    return list(dict.fromkeys(read_rows(path, parse)))


def parse_asked(row: Mapping[str, Any]) -> Conversation:
    """The prompt of a row of prompts_jsonl or training_jsonl."""
    messages = row.get("messages")
    last = messages[-1] if isinstance(messages, list) and messages else None
    if isinstance(last, Mapping) and last.get("role") == "assistant":
        whole = parse_conversation(row)
        return Conversation(whole.system, whole.turns)
    return parse_prompt(row)


def as_messages(asked: Conversation) -> tuple[Message, ...]:
    """A prompt as a judge is shown it."""
    names = {speaker: role for role, speaker in ROLES.items()}
    system = [{"role": "system", "content": asked.system}] if asked.system else []
    turns = [{"role": names[turn.speaker], "content": turn.value} for turn in asked.turns]
    return (*system, *turns)
