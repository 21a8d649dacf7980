"""Rows of conversations as tokens."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nemotron_style.steps.blocks.data.chat.interface import Chat
from nemotron_style.steps.blocks.data.chat_format import ChatFormat
from nemotron_style.steps.blocks.data.conversation import Conversation, parse_conversation
from nemotron_style.steps.blocks.data.jsonl import read_rows, refuse
from nemotron_style.steps.blocks.model.prefix_packing import Row

PLAIN = "PLAIN"


@dataclass(frozen=True)
class EncodedRow(Row):
    """Token ids, and which of them are trained; ``type`` is that of the row."""

    type: str = PLAIN

    def __len__(self) -> int:
        return len(self.ids)


def encode_rows(path: Path, *, chat: Chat, max_tokens: int) -> list[EncodedRow]:
    """Read and encode a file of ``training_jsonl``.

    Raises:
        InputError: naming file and line of every row that is malformed, holds a control token or
            is longer than ``max_tokens``. A row that is cut would train an answer that nobody gave.
    """

    def parse(row: Mapping[str, Any]) -> EncodedRow:
        conversation = parse_conversation(row)
        example = chat.example(conversation)
        encoded = EncodedRow(example.ids, example.counts, conversation.type or PLAIN)
        if len(encoded) > max_tokens:
            refuse(
                "the row is longer than the model may read",
                key="messages",
                got=f"{len(encoded)} tokens",
                allowed=f"{max_tokens} (max_seq_length, or the model's own limit)",
                fix="shorten or remove it, or raise model.data.train_ds.max_seq_length",
            )
        return encoded

    return read_rows(path, parse)


def read_texts(path: Path, chat: ChatFormat) -> Iterator[str]:
    """Every text that the model will be trained on, for its tokenizer."""
    rows: list[Conversation] = read_rows(path, parse_conversation)
    for row in rows:
        yield "".join(chat.example(row))
