"""Prompts that a policy continues, and that a reward model or a judge is shown."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nemotron_style.runtime.errors import InputError, Problem
from nemotron_style.steps.blocks.data.chat.interface import Chat
from nemotron_style.steps.blocks.data.conversation import parse_messages, prompt_messages
from nemotron_style.steps.blocks.data.jsonl import brief, read_rows, refuse

Message = Mapping[str, str]
"""``{"role": ..., "content": ...}``."""


@dataclass(frozen=True)
class Prompt:
    """A row of prompts: its messages, their tokens, and what responses to it are judged by."""

    messages: tuple[Message, ...]
    ids: list[int]
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

    def read(
        self, path: Path, read_messages: Callable[[Mapping[str, Any]], Any] = prompt_messages
    ) -> list[Prompt]:
        """The prompts of a file; ``read_messages`` gives the unchecked messages of a row.

        Raises InputError naming file and line of every row that breaks a rule or is too long.
        """

        def parse(row: Mapping[str, Any]) -> Prompt:
            messages, room = read_messages(row), self.context - self.max_new_tokens
            ids = self.chat.prompt_ids(parse_messages(messages))
            if len(ids) > room:
                refuse(
                    "the prompt leaves no room for the response, and it is not cut",
                    got=f"{len(ids)} tokens",
                    allowed=f"{room}: the context less {self.length_key}",
                    fix=f"leave the row out, or lower {self.length_key}",
                )
            principle = row.get("principle")
            if principle is not None and not isinstance(principle, str):
                refuse("a principle is a text", key="principle", got=brief(principle))
            return Prompt(tuple(messages), ids, principle or None)

        return read_rows(path, parse)
