"""The clipped policy-gradient loss of GRPO and its relatives, over one micro-batch.

    L = reduce(w * L_clip) + beta * reduce(KL) + nll_weight * NLL(samples with a positive reward)
    L_clip = max(-A r, -A clip(r, 1 - clip_min, 1 + clip_max)),  r = e^(current - previous)

``reduce`` is a mean over tokens, or over sequences of the mean over each one's tokens. Its
denominators are those of the whole global batch (:class:`masked_mean.Counts`), so that losses and
gradients of micro-batches and data-parallel ranks simply add up. Multiply by the number of ranks
where the gradient is averaged over them.

Shape legend: ``_B`` sequences, ``_T`` predicted tokens (column t of every ``[B, T]`` tensor is
about token t + 1 of the row).

Source: NeMo-RL's ``ClippedPGLossFn``; PPO (arXiv 1707.06347), dual clip (1912.09729), GSPO
(2507.18071), CISPO (2506.13585), token-level reduction and clip-higher (DAPO, 2503.14476).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from nemotron_style.steps.blocks.loss.clipped_pg_config import ClippedPGConfig
from nemotron_style.steps.blocks.loss.exponent import bounded_exp
from nemotron_style.steps.blocks.loss.importance_sampling import (
    ImportanceWeights,
    importance_weights,
)
from nemotron_style.steps.blocks.loss.kl import weighted_kl
from nemotron_style.steps.blocks.loss.masked_mean import Counts, masked_mean


@dataclass(frozen=True)
class PolicyBatch:
    """A micro-batch. Log-probs are those of the sampled tokens, all at one temperature.

    ``current_BT`` carries the gradient; ``previous_BT`` is the policy at the start of the step,
    ``generation_BT`` what sampling recorded, ``reference_BT`` the frozen policy (needed for a KL
    penalty). ``token_mask_BT`` is 1 on tokens of the response, ``sample_mask_B`` on samples that
    are trained on. ``rewards_B`` is needed for the NLL of positive samples alone.
    """

    current_BT: Tensor
    previous_BT: Tensor
    generation_BT: Tensor
    advantages_BT: Tensor
    token_mask_BT: Tensor
    sample_mask_B: Tensor
    reference_BT: Tensor | None = None
    rewards_B: Tensor | None = None

    @property
    def mask_BT(self) -> Tensor:
        return self.token_mask_BT * self.sample_mask_B[:, None]


@dataclass(frozen=True)
class ClippedPGLoss:
    """The loss (a scalar with gradient) and the quantities that its metrics are made of.

    ``excluded_BT`` marks tokens of which a part of the loss is too large for its type, with
    nothing that bounds it: that part is 0 there, without gradient.
    """

    loss: Tensor
    batch: PolicyBatch
    ratios_BT: Tensor
    clipped_BT: Tensor
    weights: ImportanceWeights
    kl: Tensor
    positive_nll: Tensor
    excluded_BT: Tensor


def clipped_pg_loss(batch: PolicyBatch, config: ClippedPGConfig, counts: Counts) -> ClippedPGLoss:
    """This micro-batch's part of the loss of the global batch that ``counts`` describes.

    Nothing outside the mask is ever read. Values and gradients are right where a ratio overflows
    and a clip bounds it; where nothing does, the token is left out and counted. Raises ValueError
    for a needed log-prob that is not finite: such a sample has to be masked before.
    """
    batch = prepare(batch, config)
    current_BT, advantages_BT = batch.current_BT, batch.advantages_BT
    ratios_BT, clipped_BT, overflow_BT = policy_ratios(batch, config)
    excluded_BT = torch.zeros_like(overflow_BT)
    if config.use_cispo:
        # The clipped ratio is a weight; every token keeps a gradient, through its log-prob.
        surrogate_BT = -advantages_BT * clipped_BT.detach() * current_BT
    else:
        surrogate_BT = torch.maximum(-advantages_BT * ratios_BT, -advantages_BT * clipped_BT)
        if config.ratio_clip_c is not None:
            # The maximum has no upper bound where A < 0 and r is large: dual clip gives it -A c.
            bounded_BT = torch.minimum(surrogate_BT, -advantages_BT * config.ratio_clip_c)
            surrogate_BT = torch.where(advantages_BT < 0, bounded_BT, surrogate_BT)
        else:
            excluded_BT = overflow_BT & (advantages_BT < 0)
            surrogate_BT = torch.where(excluded_BT, 0.0, surrogate_BT)
    weights = importance_weights(batch.previous_BT, batch.generation_BT, batch.mask_BT, config)
    if config.use_importance_sampling_correction:
        surrogate_BT = weights.values_BW * surrogate_BT
    loss = reduce(surrogate_BT, batch, config, counts)

    kl = nll = torch.zeros_like(loss)
    if config.kl_weight:
        assert batch.reference_BT is not None
        kl_BT, lost_BT = weighted_kl(current_BT, batch.reference_BT, batch.generation_BT, config)
        excluded_BT = excluded_BT | lost_BT
        kl = reduce(kl_BT, batch, config, counts)
        loss = loss + config.kl_weight * kl
    if config.positive_example_nll_weight:
        assert batch.rewards_B is not None
        positive_BT = batch.mask_BT * (batch.rewards_B > 0)[:, None]
        nll = masked_mean(-current_BT, positive_BT, denominator=counts.positive_tokens)
        loss = loss + config.positive_example_nll_weight * nll
    return ClippedPGLoss(loss, batch, ratios_BT, clipped_BT, weights, kl, nll, excluded_BT)


def policy_ratios(batch: PolicyBatch, config: ClippedPGConfig) -> tuple[Tensor, Tensor, Tensor]:
    """``r``, its clipped form, and where ``r`` is too large for its type, ``[B, T]``.

    The first two are the log-prob itself for REINFORCE.
    """
    current_BT = batch.current_BT
    nowhere_BT = torch.zeros_like(current_BT, dtype=torch.bool)
    if config.disable_ppo_ratio:
        return current_BT, current_BT, nowhere_BT
    if config.force_on_policy_ratio:
        # 1 in value, with the gradient of the log-prob.
        ratios_BT = (current_BT - current_BT.detach()).exp()
        return ratios_BT, ratios_BT, nowhere_BT
    gap_BT = current_BT - batch.previous_BT
    if config.sequence_level_importance_ratios:
        # GSPO: one ratio for all tokens of a sequence, the geometric mean of theirs.
        gap_BT = masked_mean(gap_BT, batch.token_mask_BT, dim=-1)[:, None].expand_as(gap_BT)
    ratios_BT, overflow_BT = bounded_exp(gap_BT)
    clipped_BT = ratios_BT.clamp(1 - config.ratio_clip_min, 1 + config.ratio_clip_max)
    return ratios_BT, clipped_BT, overflow_BT


def reduce(
    values_BT: Tensor, batch: PolicyBatch, config: ClippedPGConfig, counts: Counts
) -> Tensor:
    """The mean over all tokens of the global batch, or over its sequences' means."""
    if config.token_level_loss:
        return masked_mean(values_BT, batch.mask_BT, denominator=counts.tokens)
    means_B = masked_mean(values_BT, batch.token_mask_BT, dim=-1)
    return masked_mean(means_B, batch.sample_mask_B, denominator=counts.sequences)


def prepare(batch: PolicyBatch, config: ClippedPGConfig) -> PolicyBatch:
    """The batch in float32 or better, 0 wherever the mask is 0, inputs without gradient."""
    if config.kl_weight and batch.reference_BT is None:
        raise ValueError("a KL penalty needs the reference policy's log-probs")
    if config.positive_example_nll_weight and batch.rewards_B is None:
        raise ValueError("the NLL of positive samples needs their rewards")
    kept_BT = batch.mask_BT > 0
    # Replaced, not multiplied: what stands outside the mask may be NaN, and NaN * 0 is NaN, in the
    # gradient too.
    current_BT = torch.where(kept_BT, _wide(batch.current_BT), 0.0)
    reference_BT = batch.reference_BT if config.kl_weight else None
    clean = replace(
        batch,
        current_BT=current_BT,
        token_mask_BT=batch.token_mask_BT.to(current_BT.dtype),
        sample_mask_B=batch.sample_mask_B.to(current_BT.dtype),
        advantages_BT=_clean("advantages", batch.advantages_BT, kept_BT),
        previous_BT=_clean("previous", batch.previous_BT, kept_BT),
        generation_BT=_clean("generation", batch.generation_BT, kept_BT),
        reference_BT=None if reference_BT is None else _clean("reference", reference_BT, kept_BT),
    )
    if config.force_on_policy_ratio and config.is_head:
        return replace(clean, previous_BT=clean.current_BT.detach())
    return clean


def _clean(name: str, values_BT: Tensor, kept_BT: Tensor) -> Tensor:
    """Input values without gradient; refuses missing ones, which a 0 would call certain tokens."""
    values_BT = _wide(values_BT.detach())
    missing = int((kept_BT & ~values_BT.isfinite()).sum())
    if missing:
        raise ValueError(f"{name}: {missing} of the tokens that count have no finite value")
    return torch.where(kept_BT, values_BT, 0.0)


def _wide(values: Tensor) -> Tensor:
    return values if values.dtype is torch.float64 else values.float()
