"""Rows of conversations as tokens, and batches of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nemotron_style.steps.blocks.data.chat_format import ChatFormat
from nemotron_style.steps.blocks.data.conversation import Conversation, parse_conversation
from nemotron_style.steps.blocks.data.jsonl import read_rows, refuse
from nemotron_style.steps.blocks.data.tokenizer import Tokenizer
from nemotron_style.steps.blocks.model.prefix_packing import Group, PackedBatch, pack

PLAIN = "PLAIN"


@dataclass(frozen=True)
class EncodedRow:
    """A row's tokens: what is given and what is to be written. ``type`` says what it teaches."""

    prompt_ids: list[int]
    target_ids: list[int]
    type: str = PLAIN

    def __len__(self) -> int:
        return len(self.prompt_ids) + len(self.target_ids)


def encode_rows(
    path: Path, *, tokenizer: Tokenizer, chat: ChatFormat, max_tokens: int
) -> list[EncodedRow]:
    """Read and encode a file of ``training_jsonl``.

    Raises:
        InputError: naming file and line of every row that is malformed, holds a control token or
            is longer than ``max_tokens``. A row that is cut teaches an answer that nobody gave.
    """
    known: dict[str, list[int]] = {}

    def encode(text: str) -> list[int]:
        if text not in known:
            known[text] = tokenizer.encode(text, control=True)
        return known[text]

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


def texts_of(path: Path, chat: ChatFormat) -> Iterator[str]:
    """Every text that training on the file will show to the model, for its tokenizer."""
    rows: list[Conversation] = read_rows(path, parse_conversation)
    for row in rows:
        yield "".join(chat.example(row))


def deal(rows: Sequence[EncodedRow], *, size: int, part: int, parts: int) -> list[list[EncodedRow]]:
    """Micro-batches of at most ``size`` rows for one of ``parts`` data ranks.

    Rows of like length stand together, so that little is padded; every row is dealt exactly once.
    """
    mine = sorted(rows, key=lambda row: (len(row), len(row.target_ids)))[part::parts]
    return [mine[start : start + size] for start in range(0, len(mine), size)]


def pack_batch(rows: Sequence[EncodedRow]) -> PackedBatch:
    """The tensors of one micro-batch, one response a row."""
    return pack([Group(row.prompt_ids, [row.target_ids]) for row in rows])


def count_targets(rows: Sequence[EncodedRow]) -> int:
    """Tokens that the loss is the mean over."""
    return sum(len(row.target_ids) for row in rows)
