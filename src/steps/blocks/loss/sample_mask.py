"""Which samples may teach: 1 in the sample mask, or 0.

Two things are told apart. A sample that is *masked* gives no gradient and is not counted in the
loss, but its reward still takes part in its group's baseline (a truncated answer is an answer). A
sample that is *invalid* takes part in nothing (:mod:`advantage`, ``valid_B``).

Shape legend: ``_B`` samples, ``_T`` tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor


def mask_flagged(sample_mask_B: Tensor, flagged_B: Tensor) -> Tensor:
    """0 where flagged: truncated samples (DAPO's overlong filtering), judgements that failed."""
    return sample_mask_B * (~flagged_B.bool()).to(sample_mask_B.dtype)


def missing_logprobs(logprobs_BT: Tensor, token_mask_BT: Tensor) -> Tensor:
    """Bool ``[B]``: samples in which a token that counts has no finite log-prob.

    Such a sample is invalid. A 0.0 in its place would say that the token was certain.
    """
    return ((token_mask_BT > 0) & ~logprobs_BT.isfinite()).any(-1)


def sequence_errors(
    previous_BT: Tensor, generation_BT: Tensor, token_mask_BT: Tensor, sample_mask_B: Tensor
) -> tuple[Tensor, Tensor]:
    """Mean of ``e^|generation - previous|`` over each sequence, and which sequences have tokens.

    1 where the engine that sampled and the model that trains agree on every token.
    """
    kept_BT = (token_mask_BT > 0) & (sample_mask_B[:, None] > 0)
    gap_BT = torch.where(kept_BT, generation_BT - previous_BT, 0.0).double().abs()
    tokens_B = kept_BT.sum(-1)
    return (gap_BT.exp() * kept_BT).sum(-1) / tokens_B.clamp(min=1), tokens_B > 0


def mask_by_error(
    sample_mask_B: Tensor,
    errors: tuple[Tensor, Tensor],
    *,
    threshold: float | None,
    rewards_B: Tensor,
) -> tuple[Tensor, dict[str, float]]:
    """The mask without sequences whose error exceeds ``threshold``, and metrics before and after.

    ``errors`` come from :func:`sequence_errors`. ``masked_correct_pct`` is the share of the masked
    sequences whose reward is 1.
    """
    error_B, present_B = errors
    most = float("inf") if threshold is None else threshold
    over_B = present_B & (error_B > most)
    masked = int(over_B.sum())
    correct = int((rewards_B[over_B] == 1).sum())
    metrics = {
        **_spread(error_B[present_B], ""),
        **_spread(error_B[present_B & ~over_B], "_after_mask"),
        "num_masked_seqs": masked,
        "masked_correct_pct": correct / masked if masked else 0.0,
    }
    return mask_flagged(sample_mask_B, over_B), metrics


def _spread(errors: Tensor, suffix: str) -> dict[str, float]:
    values = errors.tolist() or [0.0]
    name = f"seq_mult_prob_error{suffix}"
    return {
        f"max_{name}": max(values),
        f"mean_{name}": sum(values) / len(values),
        f"min_{name}": min(values),
    }
