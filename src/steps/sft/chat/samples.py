"""Questions of the rows, for the table of answers before and after training."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from nemotron_style.steps.blocks.data.chat.interface import Chat
from nemotron_style.steps.blocks.generation.answer_samples import Question
from nemotron_style.steps.sft.chat.row import EncodedRow


def ask_again(rows: Iterable[EncodedRow], chat: Chat) -> Iterator[Question]:
    """What stands before the last trained tokens of each row, with these as the reference."""
    for row in rows:
        begin = end = len(row) - [*reversed(row.counts)].index(True)
        while begin and row.counts[begin - 1]:
            begin -= 1
        reference = chat.visible_text(row.ids[begin:end])
        yield Question(row.ids[:begin], reference, asks_label=row.type == "TEXT_TO_VALUE")
