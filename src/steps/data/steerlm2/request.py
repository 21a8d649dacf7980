"""Which groups are sampled: prompts for training and validation, and a label for each group."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nemotron_style.runtime.errors import InputError, Problem
from nemotron_style.steps.blocks.data.conversation import (
    Conversation,
    parse_conversation,
    parse_prompt,
)
from nemotron_style.steps.blocks.data.jsonl import read_rows
from nemotron_style.steps.blocks.data.sample_order import permutation
from nemotron_style.steps.blocks.data.seed import seed_of
from nemotron_style.steps.blocks.generation.chat_sampler import Request
from nemotron_style.steps.data.steerlm2.config import Data

Labels = Callable[[Conversation], Sequence[str]]
"""The labels that may be asked of an answer to a conversation, each as likely as it is frequent."""


@dataclass(frozen=True)
class Requests:
    """What is sampled, in the order of the files."""

    train: list[Request]
    validation: list[Request]

    @property
    def all(self) -> list[Request]:
        return [*self.train, *self.validation]


def read_prompts(path: Path) -> tuple[list[Conversation], list[str]]:
    """The distinct prompts of a file in their order, and all labels that stand in it.

    Rows may end with the user (prompts) or with an answer, which is then left out; a label of an
    answered row counts.
    """
    rows = read_rows(path, _read_row)
    prompts = list(dict.fromkeys(Conversation(row.system, row.turns) for row in rows))
    return prompts, [row.label for row in rows if row.label is not None]


def plan_requests(
    prompts: Sequence[Conversation], labels: Labels, *, data: Data, seed: int
) -> Requests:
    """Groups of prompts set apart for validation, and of the others, in a seeded order.

    More groups than prompts take each prompt several times, with a label of its own each time.
    Raises InputError when no prompt is left for training.
    """
    apart = data.validation_prompts
    if apart >= len(prompts):
        raise InputError(
            Problem(
                key="data.validation_prompts",
                what="no prompt is left for training",
                got=f"{apart} of {len(prompts)} distinct prompts set apart",
                fix="lower it, or give more prompts",
            )
        )
    drawn = seed_of(seed, data.iteration)  # the split is the same in every iteration
    shuffled = [prompts[index] for index in permutation(len(prompts), seed, 0)]
    return Requests(
        train=_combine(shuffled[apart:], labels, data.train_groups, seed_of(drawn, "train")),
        validation=_combine(
            shuffled[:apart], labels, data.validation_groups, seed_of(drawn, "validation")
        ),
    )


def _combine(
    prompts: Sequence[Conversation], labels: Labels, count: int | None, seed: int
) -> list[Request]:
    requests = []
    for number in range(count or len(prompts)):
        round_, place = divmod(number, len(prompts))
        prompt = prompts[permutation(len(prompts), seed, round_)[place]]
        choices = labels(prompt)
        own_seed = seed_of(seed, number)
        label = choices[seed_of(own_seed, "label") % len(choices)]
        requests.append(Request(prompt, label, own_seed))
    return requests


def _read_row(row: Mapping[str, Any]) -> Conversation:
    messages = row.get("messages")
    last = messages[-1] if isinstance(messages, list) and messages else None
    answered = isinstance(last, Mapping) and last.get("role") == "assistant"
    return parse_conversation(row) if answered else parse_prompt(row)
