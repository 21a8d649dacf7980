"""What is logged about the loss, and how the parts of a step are put together.

Sources: the metrics of NeMo-RL's ``ClippedPGLossFn`` and the aggregation of its training loop.

Shape legend: ``_B`` sequences, ``_T`` tokens.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from nemotron_style.steps.blocks.loss.clipped_pg import PolicyLoss
from nemotron_style.steps.blocks.loss.clipped_pg_config import LossOptions
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
NOTHING = -1.0
"""What NeMo-RL logs as the least or largest ratio of a step in which no token counted."""


@torch.no_grad()
def loss_metrics(done: PolicyLoss, options: LossOptions, counts: Counts) -> dict[str, float]:
    """Metrics of one micro-batch, by NeMo-RL's names; see :func:`merge_metrics` for several.

    ``token_mult_prob_error`` is the mean of ``e^|generation - previous|``: 1 where the engine and
    the trainer agree, and the first thing to look at when they should. ``gen_kl_error``,
    ``policy_kl_error`` and ``js_divergence_error`` measure the same gap as divergences.
    ``kl_penalty`` is the divergence from the reference, without its factor. Everything but
    minima and maxima is divided by the counts of the global batch.
    """
    batch, mask_BT = done.batch, done.batch.mask_BT
    previous_BT, generation_BT = batch.previous_BT, batch.generation_BT
    kind = options.reference_policy_kl_type

    def mean(values_BT: Tensor) -> Tensor:
        return masked_mean(values_BT, mask_BT, denominator=counts.tokens)

    values = {
        "loss": done.loss,
        "probs_ratio": mean(done.ratios_BT),
        "probs_ratio_clamped": mean(done.clipped_BT),
        **_extremes("probs_ratio", done.ratios_BT, mask_BT),
        **_extremes("probs_ratio_clamped", done.clipped_BT, mask_BT),
        "kl_penalty": done.kl,
        "token_mult_prob_error": mean((generation_BT - previous_BT).abs().exp()),
        "gen_kl_error": mean(estimate_kl(generation_BT, previous_BT, kind=kind)),
        "policy_kl_error": mean(estimate_kl(previous_BT, generation_BT, kind=kind)),
        "js_divergence_error": mean(estimate_js(previous_BT, generation_BT)),
        "sampling_importance_ratio": _sampling_ratio(done, options, counts),
        "num_valid_samples": batch.sample_mask_B.sum(),
        "approx_entropy": -mean((batch.current_BT - generation_BT).exp() * batch.current_BT),
    }
    if done.correction.outside is not None:
        values["is_oob_ratio"] = _outside_share(done, options, counts)
    if options.is_head:
        values["positive_nll_loss"] = done.positive_nll
    return dict(zip(values, torch.stack(list(values.values())).tolist(), strict=True))


def merge_metrics(parts: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """One set of metrics from those of micro-batches, ranks and updates of a step.

    ``*_min`` and ``*_max`` over finite values (-1 if there is none), means for :data:`AVERAGED`,
    and sums for the rest, which are parts of a whole. Over several optimizer updates these are
    sums over updates, as in NeMo-RL.
    """
    names = dict.fromkeys(name for part in parts for name in part)
    return {name: _merge(name, [part[name] for part in parts if name in part]) for name in names}


def _merge(name: str, values: Sequence[float]) -> float:
    if name.endswith(("_min", "_max")):
        choose = min if name.endswith("_min") else max
        return choose((value for value in values if math.isfinite(value)), default=NOTHING)
    total = math.fsum(values)
    return total / len(values) if name in AVERAGED else total


def _extremes(name: str, values_BT: Tensor, mask_BT: Tensor) -> dict[str, Tensor]:
    kept_BT = mask_BT > 0
    low = torch.where(kept_BT, values_BT, float("inf")).amin()
    return {
        f"{name}_min": low,
        f"{name}_max": torch.where(kept_BT, values_BT, float("-inf")).amax(),
    }


def _sampling_ratio(done: PolicyLoss, options: LossOptions, counts: Counts) -> Tensor:
    """The mean weight after truncation: of tokens, or of sequences where weights are theirs."""
    weights, batch = done.correction.weights_BW, done.batch
    if options.sequence_level_importance_ratios:
        return masked_mean(weights[:, 0], batch.sample_mask_B, denominator=counts.sequences)
    return masked_mean(weights, batch.mask_BT, denominator=counts.tokens)


def _outside_share(done: PolicyLoss, options: LossOptions, counts: Counts) -> Tensor:
    """The share of tokens (or sequences) whose weight a bound acted on.

    v0.6.0 computes ``1 - mean(inside)`` in every micro-batch, which does not add up.
    """
    outside, batch = done.correction.outside, done.batch
    assert outside is not None
    mask, total = batch.mask_BT, counts.tokens
    if outside.dim() == 1:
        mask, total = batch.sample_mask_B, counts.sequences
    if options.is_head:
        return masked_mean(outside, mask, denominator=total)
    return 1 - masked_mean(1 - outside, mask, denominator=total)
