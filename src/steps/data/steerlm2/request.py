"""Which groups are sampled: prompts for training and validation, and a label for each group."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from nemotron_style.runtime.errors import InputError, Problem
from nemotron_style.steps.blocks.data.conversation import (
    Conversation,
    parse_prompt_row,
)
from nemotron_style.steps.blocks.data.layouts.reader import RowReader
from nemotron_style.steps.blocks.data.sample_order import permutation
from nemotron_style.steps.blocks.data.seed import seed_of
from nemotron_style.steps.blocks.generation.chat_sampler import Request
from nemotron_style.steps.data.steerlm2.config import Data


@dataclass(frozen=True)
class Requests:
    """The groups to sample for each file, in the order of its rows."""

    train: list[Request]
    validation: list[Request]


def read_prompts(path: Path, reader: RowReader) -> tuple[list[Conversation], list[str]]:
    """The distinct prompts of a file in their order, and the labels of all its rows.

    A row may end with the user or with a response, which is then left out.
    """
    rows = reader.read(path, parse_prompt_row)
    prompts = list(dict.fromkeys(Conversation(row.system or None, row.turns) for row in rows))
    return prompts, [row.label for row in rows if row.label is not None]


def plan_requests(
    prompts: Sequence[Conversation], labels: Sequence[str], *, data: Data, seed: int
) -> Requests:
    """Groups of the prompts set apart for validation, and of the others, in a seeded order.

    Each group gets one of ``labels``, chosen at random: a label that is listed twice is twice as
    likely. More groups than prompts take each prompt several times, with a label of its own each
    time. Raises InputError when no prompt is left for training.
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
    # The split has the seed of the run, the labels that of the iteration: all iterations train on
    # the same prompts.
    shuffled = [prompts[index] for index in permutation(len(prompts), seed, 0)]
    seeds = [seed_of(seed_of(seed, data.iteration), name) for name in ("train", "validation")]
    return Requests(
        train=_combine(shuffled[apart:], labels, data.train_groups, seeds[0]),
        validation=_combine(shuffled[:apart], labels, data.validation_groups, seeds[1]),
    )


def _combine(
    prompts: Sequence[Conversation], labels: Sequence[str], count: int | None, seed: int
) -> list[Request]:
    requests = []
    for number in range(count or len(prompts)):
        epoch, index = divmod(number, len(prompts))
        prompt = prompts[permutation(len(prompts), seed, epoch)[index]]
        own_seed = seed_of(seed, number)
        label = labels[seed_of(own_seed, "label") % len(labels)]
        requests.append(Request(prompt, label, own_seed))
    return requests
