"""Which samples a step trains on: 1 in the sample mask, or 0.

A *masked* sample gives no gradient and is not counted in the loss, but its reward still takes part
in the baseline of its group: a truncated answer is an answer. An *invalid* sample takes part in
nothing (``valid_B`` in :mod:`advantage`).

Shape legend: ``_B`` samples, ``_T`` tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from torch import Tensor

Sample = TypeVar("Sample")


def mask_flagged(sample_mask_B: Tensor, flagged_B: Tensor) -> Tensor:
    """The mask without flagged samples: truncated (DAPO's overlong filtering), or not judged."""
    return sample_mask_B * (~flagged_B.bool()).to(sample_mask_B.dtype)


def sequence_logprob_errors(
    previous_BT: Tensor, generation_BT: Tensor, token_mask_BT: Tensor, sample_mask_B: Tensor
) -> tuple[Tensor, Tensor]:
    """Mean of ``e^|generation - previous|`` over each sequence, and which sequences have tokens.

    1 where the engine that sampled and the model that trains agree on every token.
    """
    kept_BT = (token_mask_BT > 0) & (sample_mask_B[:, None] > 0)
    # Log-probs outside the mask may be missing (NaN): replaced, not multiplied by 0.
    gap_BT = torch.where(kept_BT, generation_BT - previous_BT, 0.0).double().abs()
    tokens_B = kept_BT.sum(-1)
    return (gap_BT.exp() * kept_BT).sum(-1) / tokens_B.clamp(min=1), tokens_B > 0


def mask_by_logprob_error(
    sample_mask_B: Tensor,
    errors: tuple[Tensor, Tensor],
    *,
    threshold: float | None,
    rewards_B: Tensor,
) -> tuple[Tensor, dict[str, float]]:
    """The mask without sequences whose error exceeds ``threshold``, and metrics before and after.

    ``errors`` come from :func:`sequence_logprob_errors`. ``masked_correct_pct`` is the share of the
    masked sequences whose reward is 1.
    """
    error_B, present_B = errors
    over_B = present_B & (error_B > (torch.inf if threshold is None else threshold))
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
    mean = sum(values) / len(values)
    return {f"max_{name}": max(values), f"mean_{name}": mean, f"min_{name}": min(values)}


@dataclass(frozen=True)
class DynamicBatch(Generic[Sample]):
    """The samples kept so far, oldest first; ``complete`` when they fill a batch.

    ``cached`` counts the samples with a deviation, ``discarded`` those beyond the batch's size.
    """

    samples: Sequence[Sample]
    complete: bool
    discarded: int
    cached: int


def fill_batch(
    cache: Sequence[Sample],
    fresh: Sequence[tuple[Sample, float]],
    *,
    size: int,
    batch: int,
    most_batches: int,
) -> DynamicBatch[Sample]:
    """Add the ``fresh`` samples whose deviation is not 0 to the cache, and cut it to ``size``.

    ``batch`` is the number of batches generated for this step so far, this one included. Raises
    ValueError when ``most_batches`` were not enough.

    Source: NeMo-RL's dynamic sampling (DAPO, arXiv 2503.14476, section 3.2). It keeps *samples*
    whose baseline has a deviation, not whole groups: with leave-one-out, the loser of a group
    (0, 1, 1) sees none and is dropped.
    """
    kept = [*cache, *(sample for sample, std in fresh if std != 0)]
    if len(kept) < size and batch > most_batches:
        raise ValueError(
            f"{batch} batches gave {len(kept)} samples with a deviation and {size} are "
            "needed: raise dynamic_sampling_max_gen_batches, or see whether the prompts are too "
            "easy or too hard"
        )
    return DynamicBatch(kept[:size], len(kept) >= size, max(len(kept) - size, 0), len(kept))
