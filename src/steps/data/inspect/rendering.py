"""A conversation as a model reads it, in pieces that are trained and pieces that are not."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import NamedTuple

from nemotron_style.steps.blocks.data.chat.interface import Chat
from nemotron_style.steps.blocks.data.conversation import Conversation
from nemotron_style.steps.blocks.data.layouts.layout import Use

OPEN, CLOSE = "⟦", "⟧"
"""What stands around the tokens that are trained."""


class Piece(NamedTuple):
    """A part of a text, whether it is trained, and how many tokens it has (0: not known)."""

    text: str
    trained: bool
    tokens: int = 0


def render(conversation: Conversation, chat: Chat | None, use: Use) -> list[Piece]:
    """The pieces of a conversation in a chat format, or in plain words where there is none."""
    if chat is None:
        return _plain(conversation, use)
    if use == "training":
        example = chat.example(conversation)
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


def _plain(conversation: Conversation, use: Use) -> list[Piece]:
    """Every turn with its speaker; of a training row the last part is what is trained."""
    asked = [f"System: {conversation.system}"] if conversation.system else []
    asked += [f"{turn.speaker}: {turn.value}" for turn in conversation.turns]
    pieces = [Piece("\n".join(asked), trained=False)]
    label, response = conversation.label, conversation.response
    answers = response is not None
    if conversation.type == "TEXT_TO_VALUE":
        pieces += [Piece(f"\nAssistant: {response}\nLabel: ", False), Piece(label or "", True)]
    elif answers:
        labelled = f"\nLabel: {label}" if label is not None else ""
        pieces += [Piece(f"{labelled}\nAssistant: ", False)]
        pieces += [Piece(response or "", use == "training")]
    return pieces


def mark(pieces: Iterable[Piece]) -> str:
    """The text with brackets around what is trained, control characters as pictures (␀ to ␟)."""
    marked = "".join(
        f"{OPEN}{piece.text}{CLOSE}" if piece.trained else piece.text for piece in pieces
    )
    return marked.translate(_PICTURES)


_PICTURES = {code: 0x2400 + code for code in range(32) if chr(code) not in "\n\t"}
