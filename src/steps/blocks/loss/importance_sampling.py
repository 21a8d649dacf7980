"""Weights for samples that another program drew than the one that trains.

The engine that samples and the model that trains never agree to the last bit, so samples are
weighted by ``w = pi_previous / pi_generation`` of each token, or of each sequence, within bounds.

Shape legend: ``_B`` sequences, ``_T`` tokens; ``_W`` is T, or 1 where a weight is a sequence's.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from nemotron_style.steps.blocks.loss.clipped_pg_config import ClippedPGConfig
from nemotron_style.steps.blocks.loss.exponent import bounded_exp
from nemotron_style.steps.blocks.loss.masked_mean import masked_mean


@dataclass(frozen=True)
class ImportanceWeights:
    """Weights without gradient; ``outside`` is 1 where a bound acted, None without bounds.

    ``outside`` is ``[B, T]``, or ``[B]`` where the bounds are on whole sequences.
    """

    values_BW: Tensor
    outside: Tensor | None


def importance_weights(
    previous_BT: Tensor, generation_BT: Tensor, mask_BT: Tensor, config: ClippedPGConfig
) -> ImportanceWeights:
    """The weights that ``config`` asks for, whether or not the loss then uses them.

    * ``tis``: clamped to ``[low or 0, high]``;
    * ``icepop``: 0 outside ``[low, high]``;
    * ``seq-mask-tis``: 0 for sequences whose geometric mean weight lies outside, else unbounded.
    """
    gap_BT = (previous_BT - generation_BT).detach()
    by_sequence = config.sequence_level_importance_ratios
    log_BW = (gap_BT * mask_BT).sum(-1, keepdim=True) if by_sequence else gap_BT
    # A token that the engine called nearly impossible overflows float32: it gets no weight.
    weights_BW, overflow_BW = bounded_exp(log_BW)
    weights_BW = torch.where(overflow_BW, 0.0, weights_BW)
    kind = config.truncated_importance_sampling_type
    high = config.truncated_importance_sampling_ratio
    low = config.truncated_importance_sampling_ratio_min or 0.0
    if kind is None:
        return ImportanceWeights(weights_BW, None)
    assert high is not None
    if kind == "seq-mask-tis":
        means_B = masked_mean(gap_BT, mask_BT, dim=-1).exp()
        inside_B = (means_B >= low) & (means_B <= high)
        return ImportanceWeights(weights_BW * inside_B[:, None], (~inside_B).to(weights_BW.dtype))
    inside_BW = (weights_BW >= low) & (weights_BW <= high)
    outside_BW = (~inside_BW).to(weights_BW.dtype)
    outside = outside_BW[:, 0] if by_sequence else outside_BW
    if kind == "tis":
        return ImportanceWeights(weights_BW.clamp(low, high), outside)
    return ImportanceWeights(torch.where(inside_BW, weights_BW, 0.0), outside)
