"""The model's metrics on held-out groups."""

from __future__ import annotations

from torch import Tensor, nn

from nemotron_style.steps.blocks.loss.steerlm2 import baseline
from nemotron_style.steps.blocks.training.microbatch import score_responses
from nemotron_style.steps.sft.steerlm2.batch import Batch
from nemotron_style.steps.sft.steerlm2.metrics import GroupMetrics, compute_metrics


def measure(model: nn.Module, batch: Batch, *, max_responses: int) -> tuple[GroupMetrics, Tensor]:
    """The metrics over all groups of ``batch``, and the share ``b_PG`` of each response.

    ``max_responses`` are in a pass; no gradient.
    """
    log_q_theta_PG = score_responses(model, batch.groups, max_responses=max_responses)
    b_PG = baseline(log_q_theta_PG, batch.log_q_PG)
    loss_PG = (batch.w_PG - b_PG) * batch.nll_PG(log_q_theta_PG)
    return compute_metrics(batch, log_q_theta_PG, b_PG=b_PG, loss_PG=loss_PG), b_PG
