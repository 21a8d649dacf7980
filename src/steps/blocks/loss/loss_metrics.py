"""Metrics of the loss, and how those of a step's parts are put together.

Sources: the metrics of NeMo-RL's ``ClippedPGLossFn`` and the aggregation of its training loop.

Shape legend: ``_B`` sequences, ``_T`` tokens.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from nemotron_style.steps.blocks.loss.clipped_pg import ClippedPGLoss
from nemotron_style.steps.blocks.loss.clipped_pg_config import ClippedPGConfig
from nemotron_style.steps.blocks.loss.kl import estimate_js, estimate_kl
from nemotron_style.steps.blocks.loss.masked_mean import Counts, masked_mean

AVERAGED = (
    "lr",
    "wd",
    "reward",
    "filtered_reward",
    "global_valid_seqs",
    "global_valid_toks",
    "mean_prompt_length",
)
NO_EXTREME = -1.0
"""What NeMo-RL logs as the least or largest ratio of a step in which no token counted."""


@torch.no_grad()
def loss_metrics(
    result: ClippedPGLoss, config: ClippedPGConfig, counts: Counts
) -> dict[str, float]:
    """Metrics of one micro-batch, by NeMo-RL's names; see :func:`merge_metrics` for several.

    ``token_mult_prob_error`` is the mean of ``e^|generation - previous|``: 1 where the engine and
    the trainer agree, and the first thing to look at when they should. ``gen_kl_error``,
    ``policy_kl_error`` and ``js_divergence_error`` measure the same gap as divergences.
    ``kl_penalty`` is the divergence from the reference, without its factor.
    ``num_excluded_tokens`` counts tokens whose loss overflowed and was left out. All but minima and
    maxima are divided by the counts of the global batch.
    """
    batch, mask_BT = result.batch, result.batch.mask_BT
    previous_BT, generation_BT = batch.previous_BT, batch.generation_BT
    kind = config.reference_policy_kl_type

    def mean(values_BT: Tensor) -> Tensor:
        return masked_mean(values_BT, mask_BT, denominator=counts.tokens)

    values = {
        "loss": result.loss,
        "probs_ratio": mean(result.ratios_BT),
        "probs_ratio_clamped": mean(result.clipped_BT),
        **_extremes("probs_ratio", result.ratios_BT, mask_BT),
        **_extremes("probs_ratio_clamped", result.clipped_BT, mask_BT),
        "kl_penalty": result.kl,
        "token_mult_prob_error": mean((generation_BT - previous_BT).abs().exp()),
        "gen_kl_error": mean(estimate_kl(generation_BT, previous_BT, kind=kind)),
        "policy_kl_error": mean(estimate_kl(previous_BT, generation_BT, kind=kind)),
        "js_divergence_error": mean(estimate_js(previous_BT, generation_BT)),
        "sampling_importance_ratio": _mean_weight(result, config, counts),
        "num_valid_samples": batch.sample_mask_B.sum(),
        "num_excluded_tokens": (result.excluded_BT * mask_BT).sum(),
        "approx_entropy": -mean((batch.current_BT - generation_BT).exp() * batch.current_BT),
    }
    if result.weights.outside is not None:
        values["is_oob_ratio"] = _share_outside(result.weights.outside, result, config, counts)
    if config.is_head:
        values["positive_nll_loss"] = result.positive_nll
    # One transfer for all numbers: each .item() would wait for the device.
    return dict(zip(values, torch.stack(list(values.values())).tolist(), strict=True))


def merge_metrics(parts: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The metrics of a step from those of its micro-batches, ranks and updates.

    ``*_min`` and ``*_max`` over finite values (-1 if there is none), means for :data:`AVERAGED`,
    and sums for the rest, which are parts of a whole. Several optimizer updates are summed too, as
    in NeMo-RL.
    """
    names = dict.fromkeys(name for part in parts for name in part)
    return {name: _merge(name, [part[name] for part in parts if name in part]) for name in names}


def _merge(name: str, values: Sequence[float]) -> float:
    if name.endswith(("_min", "_max")):
        choose = min if name.endswith("_min") else max
        return choose(filter(math.isfinite, values), default=NO_EXTREME)
    total = math.fsum(values)
    return total / len(values) if name in AVERAGED else total


def _extremes(name: str, values_BT: Tensor, mask_BT: Tensor) -> dict[str, Tensor]:
    low = torch.where(mask_BT > 0, values_BT, torch.inf).amin()
    high = torch.where(mask_BT > 0, values_BT, -torch.inf).amax()
    return {f"{name}_min": low, f"{name}_max": high}


def _mean_weight(result: ClippedPGLoss, config: ClippedPGConfig, counts: Counts) -> Tensor:
    """The mean weight after truncation: of tokens, or of sequences where weights are theirs."""
    weights_BW, batch = result.weights.values_BW, result.batch
    if config.sequence_level_importance_ratios:
        return masked_mean(weights_BW[:, 0], batch.sample_mask_B, denominator=counts.sequences)
    return masked_mean(weights_BW, batch.mask_BT, denominator=counts.tokens)


def _share_outside(
    outside: Tensor, result: ClippedPGLoss, config: ClippedPGConfig, counts: Counts
) -> Tensor:
    """The share of tokens (or sequences) whose weight a bound acted on."""
    mask, total = result.batch.mask_BT, counts.tokens
    if outside.dim() == 1:
        mask, total = result.batch.sample_mask_B, counts.sequences
    if config.is_head:
        return masked_mean(outside, mask, denominator=total)
    # v0.6.0's form, which does not add up over micro-batches.
    return 1 - masked_mean(1 - outside, mask, denominator=total)
