"""How a global batch is dealt over data ranks and cut into micro-batches.

A micro-batch is what goes through the model in one pass. Its size bounds memory and never changes
the result: losses are divided by counts of the whole global batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from nemotron_style.steps.blocks.model.parallel import data_rank, data_world
from nemotron_style.steps.blocks.model.prefix_packing import (
    Group,
    PackedBatch,
    Row,
    pack,
    pack_rows,
    pack_sequence,
)


class Prompted(Protocol):
    """Token ids of a prompt and of its responses."""

    @property
    def prompt_ids(self) -> Sequence[int]: ...

    @property
    def responses_ids(self) -> Sequence[Sequence[int]]: ...


class Part(NamedTuple):
    """Responses of one group of a batch: the group's index, and which of its responses."""

    group: int
    responses: range


@dataclass(frozen=True)
class MicroBatch:
    """Parts of groups that share a pass; all have the same number of responses.

    ``packed``: they stand in one row without padding, instead of in rows of their own.
    """

    parts: tuple[Part, ...]
    packed: bool = False

    @property
    def index(self) -> tuple[Tensor, Tensor]:
        """Where ``[B, N]`` of this micro-batch stands in a table ``[groups, responses]``."""
        groups_B1 = torch.tensor([[part.group] for part in self.parts])
        return groups_B1, torch.tensor([list(part.responses) for part in self.parts])

    def pack(self, groups: Sequence[Prompted]) -> PackedBatch:
        """Its tensors, with ``groups`` the batch; a prompt stands once for its responses."""
        rows = [group for part in self.parts if isinstance(group := groups[part.group], Row)]
        if rows:  # a batch is of rows or of groups
            return pack_sequence(rows) if self.packed else pack_rows(rows)
        if self.packed:
            return pack_sequence([_as_row(groups[part.group]) for part in self.parts])
        return pack([_take(groups[part.group], part.responses) for part in self.parts])


def plan_microbatches(
    groups: Sequence[Prompted],
    *,
    max_responses: int | None = None,
    max_tokens: int | None = None,
    deal: bool = True,
) -> list[MicroBatch]:
    """Micro-batches of groups of like lengths, so that little of them is padding.

    Each has at most ``max_responses`` responses and ``max_tokens`` tokens, padding included. A
    group of more responses is divided, and its prompt is computed again for each part; a part
    that has more tokens alone has a micro-batch of its own. With ``deal`` they are the share of
    this data rank, which may be none.
    """
    sized = [
        each for number in range(len(groups)) for each in _split(groups, number, max_responses)
    ]
    sized.sort(key=_key)
    if deal:  # after sorting, so that every rank has short and long ones alike
        sized = sized[data_rank() :: data_world()]
    batches: list[list[tuple[_Size, Part]]] = []
    for each in sized:
        if batches and _fit([size for size, _ in [*batches[-1], each]], max_responses, max_tokens):
            batches[-1].append(each)
        else:
            batches.append([each])
    return [MicroBatch(tuple(part for _, part in batch)) for batch in batches]


def plan_sequences(
    groups: Sequence[Prompted], *, max_tokens: int, deal: bool = True
) -> list[MicroBatch]:
    """Micro-batches without padding, each one row of samples, of groups with one response each.

    A row has at most ``max_tokens`` tokens, or a single sample that is longer. There are as few as
    first-fit decreasing needs, rounded up to a multiple of the data ranks, and about as many
    tokens in each where that fits. With ``deal`` they are the share of this data rank, which may
    be none.
    """
    lengths = [_length(group) for group in groups]
    world = data_world() if deal else 1
    fewest = -(-sum(min(length, max_tokens) for length in lengths) // max_tokens) or 1
    count = -(-fewest // world) * world
    # First fit fits into fewer rows than an even share does, which leaves no rank waiting.
    while not (rows := _fill(lengths, count, max_tokens, even=True)) and not (
        rows := _fill(lengths, count, max_tokens, even=False)
    ):
        count += world
    if deal:
        rows = rows[data_rank() :: world]
    return [
        MicroBatch(tuple(Part(number, range(1)) for number in members), packed=True)
        for members in rows
        if members
    ]


def _fill(lengths: Sequence[int], count: int, most: int, *, even: bool) -> list[list[int]] | None:
    """Indices of the samples of ``count`` rows, longest first; None where they do not fit.

    A sample goes into the row with the fewest tokens, or into the first that has room.
    """
    rows: list[list[int]] = [[] for _ in range(count)]
    held = [0] * count
    for number in sorted(range(len(lengths)), key=lambda number: -lengths[number]):
        length = lengths[number]
        room = [row for row in range(count) if not held[row] or held[row] + length <= most]
        if not room:
            return None
        row = min(room, key=held.__getitem__) if even else room[0]
        rows[row].append(number)
        held[row] += length
    return rows


def _length(group: Prompted) -> int:
    (response,) = group.responses_ids
    return len(group.prompt_ids) + len(response)


def _as_row(group: Prompted) -> Row:
    prompt, (response,) = group.prompt_ids, group.responses_ids
    return Row([*prompt, *response], [False] * len(prompt) + [True] * len(response))


class _Size(NamedTuple):
    """Responses of a part, tokens of its prompt, and tokens of its longest response."""

    responses: int
    prompt: int
    longest: int


def _split(
    groups: Sequence[Prompted], number: int, most: int | None
) -> Iterator[tuple[_Size, Part]]:
    """The parts of a group, of at most ``most`` responses."""
    group, count = groups[number], len(groups[number].responses_ids)
    for first in range(0, count, most or count or 1):
        part = Part(number, range(first, min(first + (most or count), count)))
        longest = max(len(group.responses_ids[n]) for n in part.responses)
        yield _Size(len(part.responses), len(group.prompt_ids), longest), part


def _take(group: Prompted, responses: range) -> Group:
    return Group(group.prompt_ids, [group.responses_ids[number] for number in responses])


def _key(sized: tuple[_Size, Part]) -> tuple[int, int, int]:
    # A lone response continues its prompt, and the whole row is padded. Several responses stand
    # behind a padded prompt, each of them padded, so there the longest response counts most.
    count, prompt, longest = sized[0]
    return (count, prompt + longest, longest) if count == 1 else (count, longest, prompt)


def _fit(sizes: Sequence[_Size], max_responses: int | None, max_tokens: int | None) -> bool:
    """Whether parts of these sizes may share a micro-batch."""
    count = sizes[0].responses
    width = max(size.prompt for size in sizes) + count * max(size.longest for size in sizes)
    return (
        all(size.responses == count for size in sizes)
        and (max_responses is None or len(sizes) * count <= max_responses)
        and (max_tokens is None or len(sizes) * width <= max_tokens)
    )
