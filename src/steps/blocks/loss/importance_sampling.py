"""Weights for samples that were drawn by another program than the one that trains.

The engine that samples and the model that trains never agree to the last bit, so the samples are
weighted by ``w = pi_previous / pi_generation`` per token, or per sequence, and the weights are
bounded in one of three ways.

Shape legend: ``_B`` sequences, ``_T`` tokens; ``_W`` is T, or 1 where a weight is a sequence's.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from nemotron_style.steps.blocks.loss.clipped_pg_config import LossOptions
from nemotron_style.steps.blocks.loss.masked_mean import masked_mean


@dataclass(frozen=True)
class Correction:
    """Weights without gradient, ``[B, W]``; ``outside`` is 1 where a bound acted, or None.

    ``outside`` is ``[B, T]`` per token, and ``[B]`` where whole sequences are what is bounded.
    """

    weights_BW: Tensor
    outside: Tensor | None


def correct_sampling(
    previous_BT: Tensor, generation_BT: Tensor, mask_BT: Tensor, options: LossOptions
) -> Correction:
    """The weights of ``options``, whether or not the loss then uses them.

    * ``tis``: clamped to ``[low or 0, high]``;
    * ``icepop``: 0 outside ``[low, high]``;
    * ``seq-mask-tis``: 0 for sequences whose geometric mean weight lies outside, others as
      they are.

    A weight that is not finite counts as 0.
    """
    gap_BT = (previous_BT - generation_BT).detach()
    by_sequence = options.sequence_level_importance_ratios
    log_BW = (gap_BT * mask_BT).sum(-1, keepdim=True) if by_sequence else gap_BT
    weights_BW = log_BW.exp().nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
    kind, high = (
        options.truncated_importance_sampling_type,
        options.truncated_importance_sampling_ratio,
    )
    low = options.truncated_importance_sampling_ratio_min or 0.0
    if kind is None:
        return Correction(weights_BW, None)
    assert high is not None
    if kind == "seq-mask-tis":
        means_B = masked_mean(gap_BT, mask_BT, dim=-1).exp()
        inside_B = (means_B >= low) & (means_B <= high)
        return Correction(weights_BW * inside_B[:, None], (~inside_B).to(weights_BW.dtype))
    inside_BW = (weights_BW >= low) & (weights_BW <= high)
    outside_BW = (~inside_BW).to(weights_BW.dtype)
    outside = outside_BW[:, 0] if by_sequence else outside_BW
    if kind == "tis":
        return Correction(weights_BW.clamp(low, high), outside)
    return Correction(torch.where(inside_BW, weights_BW, 0.0), outside)
