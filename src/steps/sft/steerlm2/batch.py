"""SteerLM 2.0 on a real model: passes over groups, and the numbers they give.

Rows are dealt out to data ranks, packed so that a prompt is computed once for its responses, and
run through megatron-core's schedules.  What comes back is one number for each response, its
log-probability under the model, gathered on every rank; everything that is reported follows from
that table, so all ranks report and decide the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from megatron.core.distributed import DistributedDataParallel
from torch import Tensor

from nemotron_style.steps.blocks.data.steerlm2_row import EncodedGroup
from nemotron_style.steps.blocks.loss import steerlm2
from nemotron_style.steps.blocks.model.parallel import (
    data_rank,
    data_world,
    from_last_stage,
    sum_over_data,
)
from nemotron_style.steps.blocks.model.prefix_packing import Group, PackedBatch, pack
from nemotron_style.steps.blocks.training.microbatch import accumulate_gradients, score


@dataclass(frozen=True)
class Sizes:
    """How many responses a pass holds, with and without gradient."""

    micro_batch_size: int
    forward_micro_batch_size: int


@dataclass(frozen=True)
class Table:
    """The numbers that were given with some groups, float64 ``_PG`` on the model's device."""

    target: Tensor
    log_q: Tensor
    token_counts: Tensor

    @staticmethod
    def of(groups: Sequence[EncodedGroup], device: torch.device) -> Table:
        """The table of ``groups`` in their order."""

        def numbers(rows: Sequence[Sequence[float]]) -> Tensor:
            return torch.tensor(rows, dtype=torch.float64, device=device)

        log_q = numbers([group.log_q for group in groups])
        target = steerlm2.target_weights(
            numbers([group.log_p_a for group in groups]),
            numbers([group.log_p_y for group in groups]),
            log_q,
        )
        counts = [[len(ids) for ids in group.responses_ids] for group in groups]
        return Table(target, log_q, numbers(counts))

    def rows(self, places: Sequence[int]) -> Table:
        """The table of some of the groups."""
        index = torch.tensor(places, dtype=torch.long, device=self.log_q.device)
        return Table(self.target[index], self.log_q[index], self.token_counts[index])

    def scales(self, log_q_theta_PG: Tensor, *, groups: int) -> Tensor:
        """The factor of each response's nll in the loss of a global batch of ``groups``."""
        current = steerlm2.baseline(log_q_theta_PG, self.log_q)
        return steerlm2.response_scales(self.target - current, self.token_counts, groups=groups)


@dataclass(frozen=True)
class Figures:
    """What one look at some groups tells; see :func:`figures_of`."""

    loss: float
    distance: float
    effective_sample_size: float
    mean_drift: float
    sampler_gap: float


def figures_of(table: Table, log_q_theta_PG: Tensor) -> Figures:
    """Means over groups, from the log-probabilities that the model gives the responses.

    ``mean_drift`` is the mean of ``log Qtheta - log Q'`` over responses in nats: the loss compares
    the responses of a group with each other only, so nothing but this number shows when
    probability leaves all of them.
    """
    current = steerlm2.baseline(log_q_theta_PG, table.log_q)
    scales = table.scales(log_q_theta_PG, groups=len(log_q_theta_PG))
    return Figures(
        loss=-(scales * log_q_theta_PG).sum().item(),
        distance=steerlm2.distance(table.target, current).mean().item(),
        effective_sample_size=steerlm2.effective_sample_size(table.target).mean().item(),
        mean_drift=(log_q_theta_PG - table.log_q).mean().item(),
        sampler_gap=steerlm2.sampler_gap(current),
    )


def measure(
    model: DistributedDataParallel, groups: Sequence[EncodedGroup], table: Table, *, size: int
) -> Tensor:
    """``log Qtheta_PG`` of all groups on every rank, no gradient; ``size`` responses a pass."""
    mine = _deal(groups)
    mine_PG = _score([groups[place] for place in mine], table.log_q, size=size, model=model)
    return _gather(mine_PG, mine, like=table.log_q)


def accumulate(
    model: DistributedDataParallel, groups: Sequence[EncodedGroup], table: Table, *, sizes: Sizes
) -> Tensor:
    """Gradients of the loss of a global batch into ``main_grad``; ``log Qtheta_PG`` of it.

    When a group fits ``micro_batch_size``, the log-probabilities that carry the gradient also
    give the baseline: one pass.  Otherwise a first pass without gradient finds the baseline of
    each whole group, and a second one takes the gradient part by part; the sum is the same.
    """
    mine = _deal(groups)
    own, numbers = [groups[place] for place in mine], table.rows(mine)
    width, total = table.log_q.shape[1], len(groups)
    whole = sizes.micro_batch_size >= width
    known: Tensor | None = None
    if not whole:
        size = sizes.forward_micro_batch_size
        known = numbers.scales(_score(own, numbers.log_q, size=size, model=model), groups=total)

    def loss(
        logprobs_BNR: Tensor, work: tuple[steerlm2.Piece, PackedBatch]
    ) -> tuple[Tensor, Tensor]:
        piece, packed = work
        log_q_theta = steerlm2.response_logprob(logprobs_BNR, packed.mask_BNR).detach()
        if known is None:
            scales = numbers.rows(piece.groups).scales(log_q_theta, groups=total)
        else:
            scales = known[piece.index]
        return steerlm2.group_loss(logprobs_BNR, packed.mask_BNR, scales), log_q_theta

    pieces = steerlm2.cut(len(own), width, size=sizes.micro_batch_size)
    batches = _packed(own, pieces, table.log_q.device)
    work = [(packed, (piece, packed)) for piece, packed in zip(pieces, batches, strict=True)]
    found = accumulate_gradients(model, work, loss)
    mine_PG = torch.zeros_like(numbers.log_q)
    for piece, log_q_theta in zip(pieces, found, strict=False):  # none before the last stage
        mine_PG[piece.index] = log_q_theta
    return _gather(from_last_stage(mine_PG), mine, like=table.log_q)


def _deal(groups: Sequence[EncodedGroup]) -> list[int]:
    """The places of this data rank's groups, alike in length side by side, so that little is
    padded."""
    places = range(data_rank(), len(groups), data_world())
    return sorted(places, key=lambda place: _length(groups[place]))


def _length(group: EncodedGroup) -> tuple[int, int]:
    return max(len(ids) for ids in group.responses_ids), len(group.prompt_ids)


def _packed(
    groups: Sequence[EncodedGroup], pieces: Sequence[steerlm2.Piece], device: torch.device
) -> list[PackedBatch]:
    return [
        pack(
            [
                Group(
                    groups[place].prompt_ids,
                    [groups[place].responses_ids[response] for response in piece.responses],
                )
                for place in piece.groups
            ]
        ).to(device)
        for piece in pieces
    ]


def _score(
    groups: Sequence[EncodedGroup], like_PG: Tensor, *, size: int, model: DistributedDataParallel
) -> Tensor:
    """``log Qtheta_PG`` of this rank's groups, on every pipeline stage."""
    width = like_PG.shape[1]
    pieces = steerlm2.cut(len(groups), width, size=size)
    batches = _packed(groups, pieces, like_PG.device)
    result = like_PG.new_zeros(len(groups), width)
    for piece, packed, logprobs in zip(pieces, batches, score(model, batches), strict=True):
        result[piece.index] = steerlm2.response_logprob(logprobs, packed.mask_BNR)
    return result


def _gather(mine_PG: Tensor, mine: Sequence[int], *, like: Tensor) -> Tensor:
    """All groups' rows from those of each data rank."""
    whole = torch.zeros_like(like)
    whole[torch.tensor(mine, dtype=torch.long, device=like.device)] = mine_PG
    return sum_over_data(whole)
