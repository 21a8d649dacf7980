"""Prompts that a policy continues, and that a reward model or a judge is shown."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nemotron_style.runtime.errors import InputError, Problem
from nemotron_style.steps.blocks.data.chat.interface import Chat
from nemotron_style.steps.blocks.data.chat.token_array import token_array
from nemotron_style.steps.blocks.data.conversation import Conversation, parse_messages
from nemotron_style.steps.blocks.data.jsonl import brief, refuse
from nemotron_style.steps.blocks.data.layouts.reader import RowReader

Message = Mapping[str, str]
"""``{"role": ..., "content": ...}``."""


@dataclass(frozen=True)
class Prompt:
    """A row of prompts: its messages, their tokens, and what responses to it are judged by."""

    messages: tuple[Message, ...]
    ids: Sequence[int]
    principle: str | None = None

    @property
    def question(self) -> str:
        """What the user said last."""
        return self.messages[-1]["content"]

    def answered(self, text: str) -> list[Message]:
        """The conversation with ``text`` as the assistant's response."""
        return [*self.messages, {"role": "assistant", "content": text}]


def count_shared(train: Iterable[Prompt], held_out: Iterable[Prompt]) -> int:
    """How many of the held-out prompts are trained on too, by their tokens."""
    known = {tuple(prompt.ids) for prompt in train}
    return sum(tuple(prompt.ids) in known for prompt in held_out)


@dataclass(frozen=True)
class PromptReader:
    """Reads prompts that leave room for a response.

    ``context`` tokens hold a prompt with its response, which has up to ``max_new_tokens``, as the
    config's ``length_key`` says. Raises InputError when that leaves no room for any prompt.
    """

    chat: Chat
    context: int
    max_new_tokens: int
    length_key: str
    rows: RowReader = field(default_factory=lambda: RowReader("prompts"))

    def __post_init__(self) -> None:
        if self.max_new_tokens >= self.context:
            raise InputError(
                Problem(
                    key=self.length_key,
                    what="leaves no room for a prompt",
                    got=str(self.max_new_tokens),
                    allowed=f"1 to {self.context - 1}: the context is {self.context} tokens",
                )
            )

    def read(self, path: Path) -> list[Prompt]:
        """The prompts of a file in any layout; an answer at the end of a row is left out.

        Raises InputError naming file and line of every row that breaks a rule or is too long, as
        far as the settings of ``rows`` do not leave it out.
        """
        room = self.context - self.max_new_tokens
        too_long = Problem(
            what="the prompt leaves no room for the response, and it is not cut",
            allowed=f"{room}: the context less {self.length_key}",
            fix=f"leave the row out, or lower {self.length_key}",
        )

        def encode(conversation: Conversation) -> _Asked:
            return _Asked(conversation, token_array(self.chat.prompt_ids(conversation)))

        def parse(row: Mapping[str, Any]) -> Prompt:
            principle = row.get("principle")
            if principle is not None and not isinstance(principle, str):
                refuse("a principle is a text", key="principle", got=brief(principle))
            messages = _without_answer(row["messages"])
            whole = parse_messages(messages)
            [asked] = self.rows.shorten([whole], encode, limit=room, problem=too_long)
            system = [message for message in messages[:1] if message["role"] == "system"]
            kept = (*system, *messages[-len(asked.conversation.turns) :])
            return Prompt(kept, asked.ids, principle or None)

        return self.rows.read(path, parse)


@dataclass(frozen=True)
class _Asked:
    """A prompt, shortened where that was asked for, and its tokens."""

    conversation: Conversation
    ids: Sequence[int]

    def __len__(self) -> int:
        return len(self.ids)


def _without_answer(messages: list[Message]) -> list[Message]:
    answered = len(messages) > 1 and messages[-1]["role"] == "assistant"
    return messages[:-1] if answered else messages
