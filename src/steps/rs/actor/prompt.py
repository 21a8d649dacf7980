"""Prompts as they are sampled from and as they are sent, checked before any work is done."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nemotron_style.steps.blocks.data.chat_format import ChatFormat
from nemotron_style.steps.blocks.data.conversation import parse_prompt
from nemotron_style.steps.blocks.data.jsonl import read_rows, refuse
from nemotron_style.steps.blocks.data.tokenizer import Tokenizer
from nemotron_style.steps.blocks.reward.types import Message


@dataclass(frozen=True)
class Prompt:
    """A row of a file of prompts: the messages that are sent, and the tokens that are continued."""

    messages: tuple[Message, ...]
    ids: list[int]

    @property
    def question(self) -> str:
        """What the user said last."""
        return self.messages[-1]["content"]

    def answered(self, text: str) -> list[Message]:
        """The conversation with ``text`` as the assistant's answer."""
        return [*self.messages, {"role": "assistant", "content": text}]


def read_prompts(path: Path, tokenizer: Tokenizer, chat: ChatFormat, *, room: int) -> list[Prompt]:
    """The prompts of a file, each of at most ``room`` tokens.

    Raises InputError naming file and line of every row that breaks a rule or is too long.
    """

    def parse(row: Mapping[str, Any]) -> Prompt:
        ids = tokenizer.encode(chat.prompt(parse_prompt(row)), control=True)
        if len(ids) > room:
            refuse(
                "the prompt leaves no room for the response, and it is not cut",
                got=f"{len(ids)} tokens",
                allowed=f"{room}: the context less model.rs.length_params.max_length",
                fix="leave the row out, or lower model.rs.length_params.max_length",
            )
        return Prompt(tuple(row["messages"]), ids)

    return read_rows(path, parse)
