"""Predictions for held-out rows, and how well they go with what was rated."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from nemotron_style.steps.blocks.reward.config import RewardConfig
from nemotron_style.steps.reward.regression.batch import predict
from nemotron_style.steps.reward.regression.metrics import Points, compute_metrics, points_of
from nemotron_style.steps.reward.regression.row import EncodedRow


def measure(
    model: nn.Module, rows: Sequence[EncodedRow], *, config: RewardConfig, size: int
) -> tuple[dict[str, float], dict[str, Points]]:
    """The metrics of ``rows``, and the points of each attribute; ``size`` rows in a pass."""
    outputs = predict(model, rows, outputs=len(config.outputs), size=size)
    scores = [[config.rate(each) for each in texts.tolist()] for texts in outputs]
    return compute_metrics(rows, scores, config), points_of(rows, scores, config.outputs)
