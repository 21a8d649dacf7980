"""Samples as they are trained on: their log-probs under three policies, and what they teach.

The samples of a prompt share its computation (:mod:`packing`).  Groups are dealt out to data
ranks; losses and gradients depend on neither ranks nor passes, because every part is divided by
the counts of the whole global batch.

Shape legend: ``_B`` groups of a pass, ``_N`` samples of a group, ``_R`` tokens; for the loss the
samples are rows ``_B`` of ``_T`` tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

import torch
from megatron.core.distributed import DistributedDataParallel
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from nemotron_style.steps.blocks.loss.clipped_pg import PolicyBatch, clipped_pg_loss
from nemotron_style.steps.blocks.loss.clipped_pg_config import ClippedPGConfig
from nemotron_style.steps.blocks.loss.loss_metrics import loss_metrics, merge_metrics
from nemotron_style.steps.blocks.loss.masked_mean import Counts
from nemotron_style.steps.blocks.loss.sample_mask import (
    mask_by_logprob_error,
    sequence_logprob_errors,
)
from nemotron_style.steps.blocks.model.parallel import data_rank, data_world
from nemotron_style.steps.blocks.model.prefix_packing import Group, PackedBatch, pack
from nemotron_style.steps.blocks.model.rank_zero import RankZero
from nemotron_style.steps.blocks.training.microbatch import accumulate_gradients, score


@dataclass(frozen=True)
class Lesson:
    """One sample of a step. ``group`` is the place of its prompt.

    ``generation_T``, ``previous_T`` and ``reference_T`` are log-probs of its tokens when it was
    drawn, before the first update of this step, and under the frozen start; the last two may be
    missing where the loss has no use for them.  ``weight`` is 1 where it teaches, or 0.
    """

    group: int
    prompt_ids: Sequence[int]
    tokens: Sequence[int]
    generation_T: Tensor
    advantage: float
    reward: float
    weight: float
    previous_T: Tensor | None = None
    reference_T: Tensor | None = None


def look(
    model: nn.Module,
    lessons: Sequence[Lesson],
    *,
    size: int,
    rank_zero: RankZero,
    temperature: float = 1.0,
) -> list[Tensor]:
    """The log-probs of each lesson's tokens under ``model``, float32 ``[T]``, on every rank."""
    passes = list(cut(lessons, size))
    found = score(model, [pack_pass(lessons, each) for each in passes], temperature=temperature)
    mine = {
        place: logprobs_BNR[row, number, : len(lessons[place].tokens)].clone()
        for each, logprobs_BNR in zip(passes, found, strict=True)
        for row, places in enumerate(each)
        for number, place in enumerate(places)
    }
    everywhere = {place: one for part in rank_zero.gather(mine) for place, one in part.items()}
    return [everywhere[place] for place in range(len(lessons))]


def learn(
    model: DistributedDataParallel,
    lessons: Sequence[Lesson],
    options: ClippedPGConfig,
    *,
    size: int,
    rank_zero: RankZero,
    temperature: float = 1.0,
) -> dict[str, float]:
    """Gradients of the loss of a global batch into ``main_grad``; the loss's metrics, everywhere.

    ``size`` samples are in a pass, or fewer.
    """
    counts = count_lessons(lessons)

    def loss(logprobs_BNR: Tensor, batch: PolicyBatch) -> tuple[Tensor, dict[str, float]]:
        current_BT = logprobs_BNR.flatten(0, 1)
        done = clipped_pg_loss(_with_current(batch, current_BT), options, counts)
        return done.loss, loss_metrics(done, options, counts)

    work = []
    for each in cut(lessons, size):
        packed = pack_pass(lessons, each)
        work.append((packed, _facts(packed, [lessons[place] for one in each for place in one])))
    parts = accumulate_gradients(model, work, loss, temperature=temperature)
    return merge_metrics([one for part in rank_zero.gather(parts) for one in part])


def drop_strange(
    lessons: Sequence[Lesson], threshold: float | None
) -> tuple[list[Lesson], dict[str, float]]:
    """The lessons, without weight where sampler and trainer disagree by more than ``threshold``.

    See :func:`sample_mask.sequence_logprob_errors`; every lesson needs ``previous_T``.
    """
    previous = [one.previous_T for one in lessons if one.previous_T is not None]
    weight_B = torch.tensor([one.weight for one in lessons])
    errors = sequence_logprob_errors(
        pad_sequence(previous, batch_first=True),
        pad_sequence([one.generation_T for one in lessons], batch_first=True),
        pad_sequence([torch.ones(len(one.tokens)) for one in lessons], batch_first=True),
        weight_B,
    )
    rewards_B = torch.tensor([one.reward for one in lessons])
    kept_B, metrics = mask_by_logprob_error(
        weight_B, errors, threshold=threshold, rewards_B=rewards_B
    )
    weights = kept_B.tolist()
    return [replace(one, weight=w) for one, w in zip(lessons, weights, strict=True)], metrics


def count_lessons(lessons: Sequence[Lesson]) -> Counts:
    """The denominators of a global batch."""
    return Counts(
        tokens=sum(one.weight * len(one.tokens) for one in lessons),
        sequences=sum(one.weight for one in lessons),
        positive_tokens=sum(one.weight * len(one.tokens) for one in lessons if one.reward > 0),
    )


def cut(lessons: Sequence[Lesson], size: int) -> Iterator[list[list[int]]]:
    """This rank's part as passes of at most ``size`` samples: places, by group.

    Groups of a pass are alike in number and length; a group of more than ``size`` samples is
    divided, and its prompt computed again for each part.
    """
    places = sorted(range(len(lessons)), key=lambda place: lessons[place].group)
    groups = [list(each) for _, each in groupby(places, key=lambda place: lessons[place].group)]
    parts = [
        group[first : first + size]
        for group in groups[data_rank() :: data_world()]
        for first in range(0, len(group), size)
    ]
    parts.sort(key=lambda part: (len(part), *_length(lessons, part)))
    for count, same in groupby(parts, key=len):
        members, together = list(same), max(1, size // count)
        yield from (members[at : at + together] for at in range(0, len(members), together))


def pack_pass(lessons: Sequence[Lesson], places: Sequence[Sequence[int]]) -> PackedBatch:
    """The tensors of one pass."""
    return pack(
        [
            Group(lessons[each[0]].prompt_ids, [lessons[place].tokens for place in each])
            for each in places
        ]
    )


def _facts(packed: PackedBatch, lessons: Sequence[Lesson]) -> PolicyBatch:
    """Everything about the samples of a pass but their log-probs of now, in the packed order."""
    mask_BT = packed.mask_BNR.flatten(0, 1)
    rewards_B = torch.tensor([one.reward for one in lessons])
    generation_BT = _rows([one.generation_T for one in lessons], mask_BT)
    given = [one.previous_T for one in lessons if one.previous_T is not None]
    reference = [one.reference_T for one in lessons if one.reference_T is not None]
    return PolicyBatch(
        current_BT=generation_BT,  # takes the place of those of now, see _with_current
        previous_BT=_rows(given, mask_BT) if given else generation_BT,
        generation_BT=generation_BT,
        advantages_BT=torch.tensor([one.advantage for one in lessons])[:, None].expand(
            mask_BT.shape
        ),
        token_mask_BT=mask_BT.float(),
        sample_mask_B=torch.tensor([one.weight for one in lessons]),
        reference_BT=_rows(reference, mask_BT) if reference else None,
        rewards_B=rewards_B,
    )


def _with_current(batch: PolicyBatch, current_BT: Tensor) -> PolicyBatch:
    return PolicyBatch(**{**vars(batch), "current_BT": current_BT})


def _rows(values: Sequence[Tensor], mask_BT: Tensor) -> Tensor:
    rows_BT = torch.zeros(mask_BT.shape, dtype=values[0].dtype)
    rows_BT[mask_BT] = torch.cat([each.flatten() for each in values])
    return rows_BT


def _length(lessons: Sequence[Lesson], part: Sequence[int]) -> tuple[int, int]:
    return max(len(lessons[place].tokens) for place in part), len(lessons[part[0]].prompt_ids)
