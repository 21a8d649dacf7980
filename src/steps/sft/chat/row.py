"""Rows of conversations as tokens."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from nemotron_style.runtime.errors import Problem
from nemotron_style.steps.blocks.data.chat.interface import Chat
from nemotron_style.steps.blocks.data.chat.token_array import mark_array, token_array
from nemotron_style.steps.blocks.data.chat_format import ChatFormat
from nemotron_style.steps.blocks.data.conversation import (
    Conversation,
    TrainOn,
    parse_conversation,
)
from nemotron_style.steps.blocks.data.layouts.layout import OwnRow
from nemotron_style.steps.blocks.data.layouts.reader import RowReader
from nemotron_style.steps.blocks.model.prefix_packing import Row
from nemotron_style.steps.sft.chat.config import Config

PLAIN = "PLAIN"


def row_reader(config: Config) -> RowReader:
    """The reader of a run's rows, as its config says."""
    return RowReader("training", config.model.data, "model.data")


@dataclass(frozen=True)
class EncodedRow(Row):
    """Token ids, and which of them are trained; ``type`` is that of the row."""

    type: str = PLAIN

    def __len__(self) -> int:
        return len(self.ids)


def encode_rows(
    path: Path,
    *,
    chat: Chat,
    max_tokens: int,
    reader: RowReader | None = None,
    train_on: TrainOn = "all",
) -> list[EncodedRow]:
    """Read and encode a file of ``training_jsonl``, or one in a layout that ``reader`` knows.

    Raises:
        InputError: naming file and line of every row that is malformed, holds a control token or
            is longer than ``max_tokens``, as far as the reader's settings do not leave it out.
            An answer that is cut would train one that nobody gave.
    """
    reader = reader or RowReader("training")
    too_long = Problem(
        what="the row is longer than the model may read",
        key="messages",
        allowed=f"{max_tokens} (max_seq_length, or the model's own limit)",
        fix="shorten or remove it, or raise model.data.train_ds.max_seq_length",
    )

    def encode(conversation: Conversation) -> EncodedRow:
        example = chat.example(conversation, train_on)
        # What stands behind the last trained token would cost work and train nothing.
        length = max(n for n, counted in enumerate(example.counts, start=1) if counted)
        ids, counts = token_array(example.ids[:length]), mark_array(example.counts[:length])
        return EncodedRow(ids, counts, conversation.type or PLAIN)

    def parse(row: OwnRow) -> EncodedRow:
        conversation = parse_conversation(row)
        [encoded] = reader.shorten([conversation], encode, limit=max_tokens, problem=too_long)
        return encoded

    return reader.read(path, parse)


def read_texts(path: Path, chat: ChatFormat, reader: RowReader) -> Iterator[str]:
    """Every text that the model will be trained on, for its tokenizer."""
    for row in reader.read(path, parse_conversation):
        yield "".join(chat.example(row))
