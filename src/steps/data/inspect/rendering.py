"""A conversation as a model reads it, in pieces that are trained and pieces that are not."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import NamedTuple

from nemotron_style.steps.blocks.data.chat.interface import Chat
from nemotron_style.steps.blocks.data.conversation import ROLES, Conversation, TrainOn
from nemotron_style.steps.blocks.data.layouts.layout import Use

OPEN, CLOSE = "⟦", "⟧"
"""What stands around the tokens that are trained."""


class Piece(NamedTuple):
    """A part of a text, whether it is trained, and how many tokens it has (0: not known)."""

    text: str
    trained: bool
    tokens: int = 0


def render(
    conversation: Conversation, chat: Chat | None, use: Use, train_on: TrainOn = "all"
) -> list[Piece]:
    """The pieces of a conversation in a chat format, or in plain words where there is none."""
    if chat is None:
        return _plain(conversation, use, train_on)
    if use == "training":
        example = chat.example(conversation, train_on)
        ids, counts = example.ids, example.counts
    elif conversation.response is None:
        ids = chat.prompt_ids(conversation, conversation.label)
        counts = [False] * len(ids)
    else:
        ids = chat.conversation_ids(conversation)
        counts = [False] * len(ids)
    return list(_pieces(ids, counts, chat))


def _pieces(ids: Sequence[int], counts: Sequence[bool], chat: Chat) -> Iterable[Piece]:
    start = 0
    for trained, group in groupby(counts, key=bool):
        end = start + len(list(group))
        yield Piece(chat.tokenizer.decode(ids[start:end]), trained, end - start)
        start = end


def _plain(conversation: Conversation, use: Use, train_on: TrainOn) -> list[Piece]:
    """Every turn with its speaker, and what is trained of the assistant's."""
    turns = [(turn.speaker, turn.value) for turn in conversation.turns]
    if conversation.response is not None:
        turns.append((ROLES["assistant"], conversation.response))
    marks = iter(conversation.trained_answers(train_on) if use == "training" else ())
    pieces = [Piece(f"System: {conversation.system}\n", False)] if conversation.system else []
    for speaker, text in turns:
        trained = next(marks, False) if speaker == ROLES["assistant"] else False
        pieces += [Piece(f"{speaker}: ", False), Piece(text, trained), Piece("\n", False)]
    pieces.pop()
    if conversation.label is None:
        return pieces
    if conversation.type == "TEXT_TO_VALUE":
        return [*pieces, Piece("\nLabel: ", False), Piece(conversation.label, use == "training")]
    return [*pieces[:-2], Piece(f"Label: {conversation.label}\n", False), *pieces[-2:]]


def mark(pieces: Iterable[Piece]) -> str:
    """The text with brackets around what is trained, control characters as pictures (␀ to ␟)."""
    marked = "".join(
        f"{OPEN}{piece.text}{CLOSE}" if piece.trained else piece.text for piece in pieces
    )
    return marked.translate(_PICTURES)


_PICTURES = {code: 0x2400 + code for code in range(32) if chr(code) not in "\n\t"}
