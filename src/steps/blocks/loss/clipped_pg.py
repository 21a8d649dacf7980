"""The clipped policy-gradient loss of GRPO and its relatives, over one micro-batch.

    L = reduce(w * L_clip) + beta * reduce(KL) + nll_weight * NLL(samples with a positive reward)
    L_clip = max(-A r, -A clip(r, 1 - clip_min, 1 + clip_max)),  r = e^(current - previous)

``reduce`` is a mean over tokens, or over sequences of the mean over each one's tokens; its
denominators are those of the whole global batch (:class:`masked_mean.Counts`), so that the losses
and gradients of micro-batches and of data-parallel ranks simply add up. Multiply by the number of
ranks where the gradient is averaged over them.

Shape legend: ``_B`` sequences, ``_T`` the tokens that are predicted: column t of every ``[B, T]``
tensor is about token t + 1 of the row.

Source: NeMo-RL's ``ClippedPGLossFn``; PPO (arXiv 1707.06347), dual clip (1912.09729), GSPO
(2507.18071), CISPO (2506.13585), token-level reduction and clip-higher (DAPO, 2503.14476).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from nemotron_style.steps.blocks.loss.clipped_pg_config import LossOptions
from nemotron_style.steps.blocks.loss.importance_sampling import Correction, correct_sampling
from nemotron_style.steps.blocks.loss.kl import weighted_kl
from nemotron_style.steps.blocks.loss.masked_mean import Counts, masked_mean


@dataclass(frozen=True)
class PolicyBatch:
    """A micro-batch. Log-probs are those of the tokens that were sampled, at one temperature.

    ``current_BT`` carries the gradient; ``previous_BT`` is the policy at the start of the step,
    ``generation_BT`` what sampling recorded, ``reference_BT`` the frozen policy (None without KL
    penalty). ``token_mask_BT`` is 1 on tokens of the response, ``sample_mask_B`` 1 on samples
    that teach. ``rewards_B`` is read for the NLL of positive samples alone.
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
class PolicyLoss:
    """The loss (a scalar with gradient) and what its metrics are made of."""

    loss: Tensor
    batch: PolicyBatch
    ratios_BT: Tensor
    clipped_BT: Tensor
    correction: Correction
    kl: Tensor
    positive_nll: Tensor


def policy_loss(batch: PolicyBatch, options: LossOptions, counts: Counts) -> PolicyLoss:
    """This micro-batch's part of the loss of the global batch that ``counts`` describes.

    What stands where the mask is 0 is never read. Raises ValueError when a log-prob that is
    needed is not finite: such a sample has to be masked before (:mod:`sample_mask`).
    """
    batch = prepare(batch, options)
    ratios_BT, clipped_BT = policy_ratios(batch, options)
    surrogate_BT = clipped_surrogate(batch, ratios_BT, clipped_BT, options)
    correction = correct_sampling(batch.previous_BT, batch.generation_BT, batch.mask_BT, options)
    if options.use_importance_sampling_correction:
        surrogate_BT = correction.weights_BW * surrogate_BT
    loss = reduce(surrogate_BT, batch, options, counts)
    kl = torch.zeros_like(loss)
    if options.kl_weight:
        assert batch.reference_BT is not None
        tokens = (batch.current_BT, batch.reference_BT, batch.generation_BT)
        kl = reduce(weighted_kl(*tokens, options), batch, options, counts)
        loss = loss + options.kl_weight * kl
    nll = torch.zeros_like(loss)
    if options.positive_example_nll_weight:
        nll = positive_nll(batch, counts)
        loss = loss + options.positive_example_nll_weight * nll
    return PolicyLoss(loss, batch, ratios_BT, clipped_BT, correction, kl, nll)


def prepare(batch: PolicyBatch, options: LossOptions) -> PolicyBatch:
    """Float32 or better, masks as numbers, 0 wherever the mask is 0, and ``previous`` as meant."""
    if options.kl_weight and batch.reference_BT is None:
        raise ValueError("a KL penalty needs the reference policy's log-probs")
    if options.positive_example_nll_weight and batch.rewards_B is None:
        raise ValueError("the NLL of positive samples needs their rewards")
    current_BT = _wide(batch.current_BT)
    kept_BT = batch.mask_BT > 0
    clean = replace(
        batch,
        current_BT=torch.where(kept_BT, current_BT, 0.0),
        token_mask_BT=batch.token_mask_BT.to(current_BT.dtype),
        sample_mask_B=batch.sample_mask_B.to(current_BT.dtype),
        advantages_BT=_given("advantages", batch.advantages_BT, kept_BT),
        previous_BT=_given("previous", batch.previous_BT, kept_BT),
        generation_BT=_given("generation", batch.generation_BT, kept_BT),
        reference_BT=(
            _given("reference", batch.reference_BT, kept_BT)
            if batch.reference_BT is not None and options.kl_weight
            else None
        ),
    )
    if options.force_on_policy_ratio and options.is_head:
        return replace(clean, previous_BT=clean.current_BT.detach())
    return clean


def policy_ratios(batch: PolicyBatch, options: LossOptions) -> tuple[Tensor, Tensor]:
    """``r`` and its clipped form, ``[B, T]``.

    ``e^(current - sg(current))`` = 1 where the policy is forced to be the one that sampled; the
    log-prob itself without a ratio (REINFORCE); one ratio per sequence for GSPO, the exponential
    of the mean difference.
    """
    current_BT = batch.current_BT
    if options.disable_ppo_ratio:
        return current_BT, current_BT
    if options.force_on_policy_ratio:
        ratios_BT = (current_BT - current_BT.detach()).exp()
        return ratios_BT, ratios_BT
    gap_BT = current_BT - batch.previous_BT
    if options.sequence_level_importance_ratios:
        gap_BT = masked_mean(gap_BT, batch.token_mask_BT, dim=-1)[:, None].expand_as(gap_BT)
    ratios_BT = gap_BT.exp()
    low, high = 1 - options.ratio_clip_min, 1 + options.ratio_clip_max
    return ratios_BT, ratios_BT.clamp(low, high)


def clipped_surrogate(
    batch: PolicyBatch, ratios_BT: Tensor, clipped_BT: Tensor, options: LossOptions
) -> Tensor:
    """``L_clip`` of each token; bounded by ``-A c`` under dual clip; ``-A sg(rc) lp`` for CISPO."""
    advantages_BT = batch.advantages_BT
    if options.use_cispo:
        return -advantages_BT * clipped_BT.detach() * batch.current_BT
    worse_BT = torch.maximum(-advantages_BT * ratios_BT, -advantages_BT * clipped_BT)
    if options.ratio_clip_c is None:
        return worse_BT
    bounded_BT = torch.minimum(worse_BT, -advantages_BT * options.ratio_clip_c)
    return torch.where(advantages_BT < 0, bounded_BT, worse_BT)


def positive_nll(batch: PolicyBatch, counts: Counts) -> Tensor:
    """Mean of ``-current`` over the tokens of samples with a positive reward."""
    assert batch.rewards_B is not None
    mask_BT = batch.mask_BT * (batch.rewards_B > 0)[:, None]
    return masked_mean(-batch.current_BT, mask_BT, denominator=counts.positive_tokens)


def reduce(values_BT: Tensor, batch: PolicyBatch, options: LossOptions, counts: Counts) -> Tensor:
    """The mean over all tokens of the global batch, or over its sequences' means."""
    if options.token_level_loss:
        return masked_mean(values_BT, batch.mask_BT, denominator=counts.tokens)
    means_B = masked_mean(values_BT, batch.token_mask_BT, dim=-1)
    return masked_mean(means_B, batch.sample_mask_B, denominator=counts.sequences)


def _given(name: str, values_BT: Tensor, kept_BT: Tensor) -> Tensor:
    """A tensor that is input: no gradient, and all that counts is there."""
    values_BT = _wide(values_BT.detach())
    missing = int((kept_BT & ~values_BT.isfinite()).sum())
    if missing:
        raise ValueError(f"{name}: {missing} of the tokens that count have no finite value")
    return torch.where(kept_BT, values_BT, 0.0)


def _wide(values: Tensor) -> Tensor:
    return values if values.dtype is torch.float64 else values.float()
