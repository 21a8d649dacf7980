"""Groups with the numbers of their rows, and the passes of the model over them.

What comes back from a pass is one number for each response, its log-probability under the model,
on every rank; all that is reported and decided follows from these numbers.

Shapes: ``_P`` groups, ``_G`` responses of a group; a micro-batch has ``_B`` groups of ``_N``
responses of ``_R`` tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from megatron.core.distributed import DistributedDataParallel
from torch import Tensor

from nemotron_style.steps.blocks.data.steerlm2_row import EncodedGroup
from nemotron_style.steps.blocks.loss import steerlm2
from nemotron_style.steps.blocks.model.parallel import from_last_stage, sum_over_data
from nemotron_style.steps.blocks.training.microbatch import accumulate_gradients, score_responses
from nemotron_style.steps.blocks.training.microbatch_plan import plan_microbatches
from nemotron_style.steps.sft.steerlm2.config import SteerLM2

Index = tuple[Tensor, Tensor] | slice
"""Entries of a table ``[groups, responses]``; see ``MicroBatch.index``."""


@dataclass(frozen=True)
class Batch:
    """Groups, and of each response its target weight ``w``, ``log Q'`` and number of tokens.

    The tables are float64 and on the CPU, as the log-probabilities are that come from passes.
    """

    groups: Sequence[EncodedGroup]
    w_PG: Tensor
    log_q_PG: Tensor
    tokens_PG: Tensor

    @staticmethod
    def of(groups: Sequence[EncodedGroup]) -> Batch:
        """The batch of ``groups`` in their order."""
        log_p_a_PG = _table([group.log_p_a for group in groups])
        log_p_y_PG = _table([group.log_p_y for group in groups])
        log_q_PG = _table([group.log_q for group in groups])
        tokens_PG = _table([[len(ids) for ids in group.responses_ids] for group in groups])
        w_PG = steerlm2.target_weights(log_p_a_PG, log_p_y_PG, log_q_PG)
        return Batch(groups, w_PG, log_q_PG, tokens_PG)

    def nll_PG(self, log_q_theta_PG: Tensor) -> Tensor:
        """Each response's ``-log Qtheta``, divided by the mean length of its group's responses."""
        return -log_q_theta_PG / self.tokens_PG.mean(-1, keepdim=True)

    def take(self, indices: Sequence[int]) -> Batch:
        """The batch of some of the groups."""
        rows = torch.tensor(indices, dtype=torch.long)
        tables = (self.w_PG[rows], self.log_q_PG[rows], self.tokens_PG[rows])
        return Batch([self.groups[index] for index in indices], *tables)


def accumulate(model: DistributedDataParallel, batch: Batch, sizes: SteerLM2) -> Tensor:
    """Gradients of the loss of a global batch into ``main_grad``; ``log Qtheta_PG`` of it.

    The loss is the mean over groups of ``sum_i (w_i - b_i) nll_i`` with ``b`` held fixed.

    Where a group fits a micro-batch, the log-probabilities that carry the gradient also give
    ``b``: one pass. Otherwise ``b`` of each whole group is found by a pass without gradient, and
    the gradient is taken part by part; the sum is the same.
    """
    known_PG: Tensor | None = None
    if sizes.micro_batch_size < batch.w_PG.shape[1]:
        size = sizes.forward_micro_batch_size
        known_PG = score_responses(model, batch.groups, max_responses=size)
        known_PG = _scales(batch, known_PG, slice(None))

    def loss(logprobs_BNR: Tensor, at: tuple[Index, Tensor]) -> tuple[Tensor, Tensor]:
        index, mask_BNR = at
        logprobs_BNR = logprobs_BNR.cpu()  # where the tables of the batch are
        log_q_theta_BN = steerlm2.response_logprob(logprobs_BNR, mask_BNR).detach()
        scales_BN = _scales(batch, log_q_theta_BN, index) if known_PG is None else known_PG[index]
        return steerlm2.group_loss(logprobs_BNR, mask_BNR, scales_BN), log_q_theta_BN

    plan = plan_microbatches(batch.groups, max_responses=sizes.micro_batch_size)
    packed = [microbatch.pack(batch.groups) for microbatch in plan]
    work = [(each, (b.index, each.mask_BNR)) for b, each in zip(plan, packed, strict=True)]
    parts = accumulate_gradients(model, work, loss)
    log_q_theta_PG = torch.zeros_like(batch.log_q_PG)
    for microbatch, log_q_theta_BN in zip(plan, parts, strict=False):  # none before the last stage
        log_q_theta_PG[microbatch.index] = log_q_theta_BN
    return sum_over_data(from_last_stage(log_q_theta_PG))


def _scales(batch: Batch, log_q_theta_PG: Tensor, index: Index) -> Tensor:
    """The factor of each response's nll in the loss, for whole groups at ``index``."""
    b_PG = steerlm2.baseline(log_q_theta_PG, batch.log_q_PG[index])
    groups = len(batch.groups)
    return steerlm2.response_scales(batch.w_PG[index] - b_PG, batch.tokens_PG[index], groups=groups)


def _table(rows: Sequence[Sequence[float]]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64)
