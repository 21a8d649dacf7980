"""What is shown of the rows: questions to ask again, and which of their tokens are trained."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby

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


def name_trained(rows: Sequence[EncodedRow], chat: Chat) -> list[list[tuple[str, bool]]]:
    """The texts of each row in turn, each with whether the loss counts its tokens."""
    return [
        [
            (chat.visible_text([int(number) for number, _ in run]), bool(counts))
            for counts, run in groupby(zip(row.ids, row.counts, strict=True), lambda pair: pair[1])
        ]
        for row in rows
    ]
