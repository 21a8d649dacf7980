"""Rows of conversations as tokens."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

from nemotron_style.steps.blocks.data.chat_format import ChatFormat
from nemotron_style.steps.blocks.data.conversation import Conversation, parse_conversation
from nemotron_style.steps.blocks.data.jsonl import read_rows, refuse
from nemotron_style.steps.blocks.data.tokenizer import Tokenizer

PLAIN = "PLAIN"


@dataclass(frozen=True)
class EncodedRow:
    """Token ids of a prompt and of the answer to train on; ``type`` is that of the row."""

    prompt_ids: list[int]
    target_ids: list[int]
    type: str = PLAIN

    @property
    def responses_ids(self) -> list[list[int]]:
        """The target, as a group of one response to its prompt."""
        return [self.target_ids]

    def __len__(self) -> int:
        return len(self.prompt_ids) + len(self.target_ids)


def encode_rows(
    path: Path, *, tokenizer: Tokenizer, chat: ChatFormat, max_tokens: int
) -> list[EncodedRow]:
    """Read and encode a file of ``training_jsonl``.

    Raises:
        InputError: naming file and line of every row that is malformed, holds a control token or
            is longer than ``max_tokens``. A row that is cut would train an answer that nobody gave.
    """
    encode = cache(partial(tokenizer.encode, control=True))

    def parse(row: Mapping[str, Any]) -> EncodedRow:
        conversation = parse_conversation(row)
        prompt, target = chat.example(conversation)
        encoded = EncodedRow(encode(prompt), encode(target), conversation.type or PLAIN)
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
