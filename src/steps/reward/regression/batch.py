"""One global batch forward and back, and the outputs for a whole file.

Shapes: ``_C`` conversations of a batch, ``_K`` attributes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nemotron_style.steps.blocks.model.device import prepare_device
from nemotron_style.steps.blocks.model.parallel import (
    data_rank,
    data_world,
    from_last_stage,
    sum_over_data,
)
from nemotron_style.steps.blocks.model.prefix_packing import PackedBatch
from nemotron_style.steps.blocks.reward.config import RewardConfig
from nemotron_style.steps.blocks.reward.regression_model import pack_conversations
from nemotron_style.steps.blocks.training.microbatch import accumulate_gradients, score
from nemotron_style.steps.reward.regression.row import EncodedRow


@dataclass(frozen=True)
class Facts:
    """What the outputs of a micro-batch are compared with.

    ``targets_CK`` are standardised, NaN where nothing was rated. ``better`` and ``worse`` are the
    places of the two sides of each pair, ``margins`` how far they should be apart.
    """

    targets_CK: Tensor
    better: Tensor
    worse: Tensor
    margins: Tensor


@dataclass(frozen=True)
class Denominator:
    """Counts over a global batch: ratings of each attribute ``[K]``, and pairs."""

    ratings_K: Tensor
    pairs: int


def count(rows: Sequence[EncodedRow], config: RewardConfig) -> Denominator:
    """What the means of a global batch are taken over."""
    rated = [sum(name in row.ratings for row in rows) for name in config.outputs]
    return Denominator(torch.tensor(rated), sum(row.is_pair for row in rows))


def losses(
    outputs_CK: Tensor, facts: Facts, *, config: RewardConfig, over: Denominator
) -> tuple[Tensor, Tensor]:
    """These conversations' shares of the regression loss and of the pair loss, two scalars.

    Regression: the mean squared error of each attribute over *its* ratings in the global batch,
    and the mean of that over the attributes that the batch rates. Pairs: the mean of
    ``-log sigmoid(better - worse - margin)`` of scores in the units of the data.
    """
    outputs_CK = outputs_CK.double()
    # masked before the square: its derivative at NaN would be NaN, mask or not
    errors_CK = torch.where(facts.targets_CK.isnan(), 0.0, outputs_CK - facts.targets_CK)
    sums_K = errors_CK.square().sum(0)
    attributes = max(1, int(over.ratings_K.count_nonzero()))
    regression = (sums_K / over.ratings_K.clamp(min=1)).sum() / attributes
    slopes = [config.weights[name] * config.scale[name].std for name in config.outputs]
    scores_C = outputs_CK @ torch.tensor(slopes, dtype=torch.float64)
    lead = scores_C[facts.better] - scores_C[facts.worse] - facts.margins
    return regression, -F.logsigmoid(lead).sum() / max(1, over.pairs)


def accumulate(
    model: nn.Module, rows: Sequence[EncodedRow], *, config: RewardConfig, size: int
) -> dict[str, float]:
    """Gradients of the loss of ``rows``, a whole global batch; ``size`` bounds a pass.

    Returns the losses on every rank: ``loss`` and, where there are such rows, its two parts.
    """
    over = count(rows, config)

    def loss(outputs_C1K: Tensor, facts: Facts) -> tuple[Tensor, Tensor]:
        parts = losses(outputs_C1K[:, 0], facts, config=config, over=over)
        return sum(parts), torch.stack(parts).detach()

    device = prepare_device()
    batches = [(pack_rows(part).to(device), facts_of(part, config)) for part in deal(rows, size)]
    shares = accumulate_gradients(model, batches, loss)
    total = sum(shares, torch.zeros(2, dtype=torch.float64))
    regression, pairs = from_last_stage(sum_over_data(total)).tolist()
    found = {"loss": regression + pairs}
    found |= {"regression_loss": regression} if over.ratings_K.any() else {}
    return found | ({"pair_loss": pairs} if over.pairs else {})


def predict(
    model: nn.Module, rows: Sequence[EncodedRow], *, outputs: int, size: int
) -> list[Tensor]:
    """The head's outputs ``[conversations of the row, K]`` in float64 of each row, on all ranks."""
    device = prepare_device()
    ends = [0]
    for row in rows:
        ends.append(ends[-1] + len(row.texts))
    spans = {id(row): span for row, span in zip(rows, pairwise(ends), strict=True)}
    table = torch.zeros(ends[-1], outputs, dtype=torch.float64)
    mine = deal(rows, size)
    found = score(model, [pack_rows(part).to(device) for part in mine], width=outputs)
    for part, outputs_C1K in zip(mine, found, strict=True):
        places = [place for row in part for place in range(*spans[id(row)])]
        table[places] = outputs_C1K[:, 0].double()
    table = sum_over_data(table)
    return [table[first:last] for first, last in pairwise(ends)]


def deal(rows: Sequence[EncodedRow], size: int) -> list[list[EncodedRow]]:
    """This data rank's micro-batches of at most ``size`` rows, rows of like length together."""
    mine = sorted(rows, key=lambda row: max(map(len, row.texts)))[data_rank() :: data_world()]
    return [mine[start : start + size] for start in range(0, len(mine), size)]


def pack_rows(rows: Sequence[EncodedRow]) -> PackedBatch:
    """The conversations of ``rows``, one after the other."""
    return pack_conversations([text for row in rows for text in row.texts])


def facts_of(rows: Sequence[EncodedRow], config: RewardConfig) -> Facts:
    """What the outputs of :func:`pack_rows` are compared with."""
    targets: list[list[float]] = []
    better: list[int] = []
    for row in rows:
        better += [len(targets)] if row.is_pair else []
        targets += [standardise(row, config)] * len(row.texts)
    places = torch.tensor(better, dtype=torch.long)
    margins = [row.margin for row in rows if row.is_pair]
    return Facts(
        torch.tensor(targets, dtype=torch.float64),
        places,
        places + 1,
        torch.tensor(margins, dtype=torch.float64),
    )


def standardise(row: EncodedRow, config: RewardConfig) -> list[float]:
    """The row's ratings on the head's scale, NaN where there is none."""
    return [
        (row.ratings[name] - config.scale[name].mean) / config.scale[name].std
        if name in row.ratings
        else float("nan")
        for name in config.outputs
    ]
