"""The loss of a global batch, and the passes of the model over its conversations.

Shapes: ``_C`` conversations of a batch, one of a rated row and two of a pair; ``_K`` attributes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate as running_total
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nemotron_style.steps.blocks.model.parallel import from_last_stage, sum_over_data
from nemotron_style.steps.blocks.model.prefix_packing import PAD, Group, PackedBatch
from nemotron_style.steps.blocks.reward.config import RewardConfig
from nemotron_style.steps.blocks.reward.regression_model import pack_conversations
from nemotron_style.steps.blocks.training.microbatch import accumulate_gradients, score
from nemotron_style.steps.blocks.training.microbatch_plan import plan_microbatches
from nemotron_style.steps.reward.regression.row import EncodedRow


@dataclass(frozen=True)
class Targets:
    """What the predictions for some rows are compared with.

    ``rating_CK`` is standardised, NaN where nothing was rated. ``better`` and ``worse`` are the
    indices of the two conversations of each pair, ``margins`` how far they should be apart.
    """

    rating_CK: Tensor
    better: Tensor
    worse: Tensor
    margins: Tensor

    @staticmethod
    def of(rows: Sequence[EncodedRow], config: RewardConfig) -> Targets:
        """The targets of ``rows``, their conversations one after the other."""
        ratings: list[list[float]] = []
        better: list[int] = []
        for row in rows:
            better += [len(ratings)] if row.is_pair else []
            ratings += [_standardise(row, config)] * len(row.texts)
        first = torch.tensor(better, dtype=torch.long)
        margins = torch.tensor([row.margin for row in rows if row.is_pair], dtype=torch.float64)
        return Targets(torch.tensor(ratings, dtype=torch.float64), first, first + 1, margins)

    @property
    def ratings_K(self) -> Tensor:
        """Number of ratings of each attribute."""
        return self.rating_CK.isnan().logical_not().sum(0)

    @property
    def pairs(self) -> int:
        """Number of pairs."""
        return len(self.margins)


def mean_squared_error(prediction_CK: Tensor, target: Targets, *, over: Targets) -> Tensor:
    """The share of these conversations in the mean squared error of the batch ``over``.

    The error of each attribute is a mean over *its* ratings, and the result the mean of those
    over the attributes that the batch rates.
    """
    # masked before the square: its derivative at NaN would be NaN, mask or not
    unrated_CK = target.rating_CK.isnan()
    error_CK = torch.where(unrated_CK, 0.0, prediction_CK.double() - target.rating_CK)
    mse_K = error_CK.square().sum(0) / over.ratings_K.clamp(min=1)
    return mse_K.sum() / max(1, int(over.ratings_K.count_nonzero()))


def ranking_loss(
    prediction_CK: Tensor, target: Targets, *, config: RewardConfig, over: Targets
) -> Tensor:
    """The share of these pairs in the mean of ``-log sigmoid(better - worse - margin)``.

    Compared are scores in the units of the data; the mean is over the pairs of ``over``.
    """
    slopes = [config.weights[name] * config.scale[name].std for name in config.outputs]
    score_C = prediction_CK.double() @ torch.tensor(slopes, dtype=torch.float64)
    lead = score_C[target.better] - score_C[target.worse] - target.margins
    return -F.logsigmoid(lead).sum() / max(1, over.pairs)


def accumulate(
    model: nn.Module, rows: Sequence[EncodedRow], *, config: RewardConfig, size: int
) -> Tensor:
    """Gradients of the loss of a global batch into ``main_grad``; the predictions ``_CK`` for it.

    The loss is the mean squared error and the ranking loss, added. ``size`` bounds the rows of a
    pass. The predictions are float64, on every rank.
    """
    whole = Targets.of(rows, config)

    def loss(outputs_C1K: Tensor, target: Targets) -> tuple[Tensor, Tensor]:
        prediction_CK = outputs_C1K[:, 0].double().cpu()
        mse = mean_squared_error(prediction_CK, target, over=whole)
        ranking = ranking_loss(prediction_CK, target, config=config, over=whole)
        return mse + ranking, prediction_CK.detach()

    plan = _plan(rows, size)
    parts = [[rows[index] for index in members] for members in plan]
    batches = [(pack_rows(part), Targets.of(part, config)) for part in parts]
    predictions = accumulate_gradients(model, batches, loss)
    return _gather(rows, plan, predictions, outputs=len(config.outputs))


def predict(
    model: nn.Module, rows: Sequence[EncodedRow], *, outputs: int, size: int
) -> list[Tensor]:
    """The predictions ``[conversations of the row, K]`` for each row, float64, on every rank."""
    plan = _plan(rows, size)
    batches = [pack_rows([rows[index] for index in members]) for members in plan]
    predictions = [each[:, 0].double() for each in score(model, batches, width=outputs)]
    table_CK = _gather(rows, plan, predictions, outputs=outputs)
    return [table_CK[first:last] for first, last in pairwise(_starts(rows))]


def pack_rows(rows: Sequence[EncodedRow]) -> PackedBatch:
    """The conversations of ``rows``, one after the other."""
    return pack_conversations([text for row in rows for text in row.texts])


def _plan(rows: Sequence[EncodedRow], size: int) -> list[list[int]]:
    """Indices of the rows of each of this rank's micro-batches; a pair stays together."""
    longest = [Group(max(row.texts, key=len), [[PAD]]) for row in rows]
    plan = plan_microbatches(longest, max_responses=size)
    return [[part.group for part in batch.parts] for batch in plan]


def _starts(rows: Sequence[EncodedRow]) -> list[int]:
    """The index of each row's first conversation, and the number of all conversations."""
    return [0, *running_total(len(row.texts) for row in rows)]


def _gather(
    rows: Sequence[EncodedRow],
    plan: Sequence[Sequence[int]],
    predictions: Sequence[Tensor],
    outputs: int,
) -> Tensor:
    """Predictions for all conversations on every rank, from those of this rank's micro-batches.

    Before the last pipeline stage there are none.
    """
    starts = _starts(rows)
    table_CK = torch.zeros(starts[-1], outputs, dtype=torch.float64)
    for members, prediction_CK in zip(
        plan, predictions, strict=False
    ):  # none before the last stage
        indices = [n for row in members for n in range(starts[row], starts[row + 1])]
        table_CK[indices] = prediction_CK
    return sum_over_data(from_last_stage(table_CK))


def _standardise(row: EncodedRow, config: RewardConfig) -> list[float]:
    """The row's ratings on the head's scale, NaN where there is none."""
    return [
        (row.ratings[name] - config.scale[name].mean) / config.scale[name].std
        if name in row.ratings
        else math.nan
        for name in config.outputs
    ]
