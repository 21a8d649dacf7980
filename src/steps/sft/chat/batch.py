"""One global batch forward and back, and the loss over a whole file."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from nemotron_style.steps.blocks.model.device import prepare_device
from nemotron_style.steps.blocks.model.parallel import (
    data_rank,
    data_world,
    from_last_stage,
    sum_over_data,
)
from nemotron_style.steps.blocks.training.microbatch import accumulate_gradients, score
from nemotron_style.steps.sft.chat.row import EncodedRow, count_targets, deal, pack_batch


def accumulate(model: nn.Module, rows: Sequence[EncodedRow], *, size: int) -> float:
    """Gradients of the mean NLL over the target tokens of ``rows``, a whole global batch.

    ``size`` bounds the rows of one pass. Returns that mean, on every rank.
    """
    tokens = count_targets(rows)

    def loss(logprobs_BNR: Tensor, _: None) -> tuple[Tensor, Tensor]:
        nll = -logprobs_BNR.sum()
        return nll / tokens, nll.detach().double()

    device = prepare_device()
    mine = deal(rows, size=size, part=data_rank(), parts=data_world())
    sums = accumulate_gradients(model, [(pack_batch(part).to(device), None) for part in mine], loss)
    total = sum(sums, torch.zeros((), dtype=torch.float64, device=device))
    return float(from_last_stage(sum_over_data(total))) / tokens


def measure(model: nn.Module, rows: Sequence[EncodedRow], *, size: int) -> dict[str, float]:
    """Mean NLL per target token: ``loss`` over all rows, and ``loss_<type>`` over each type's."""
    device = prepare_device()
    mine = deal(rows, size=size, part=data_rank(), parts=data_world())
    found = score(model, [pack_batch(part).to(device) for part in mine])
    types = sorted({row.type for row in rows})
    sums = torch.zeros(len(types), dtype=torch.float64, device=device)
    for part, logprobs_BNR in zip(mine, found, strict=True):
        for row, nll in zip(part, -logprobs_BNR.double().sum((1, 2)), strict=True):
            sums[types.index(row.type)] += nll
    nll_by_type = dict(zip(types, sum_over_data(sums).tolist(), strict=True))
    by_type = defaultdict(list)
    for row in rows:
        by_type[row.type].append(row)
    means = {
        f"loss_{name.lower()}": nll_by_type[name] / count_targets(by_type[name]) for name in types
    }
    return {"loss": sum(nll_by_type.values()) / count_targets(rows), **means}
