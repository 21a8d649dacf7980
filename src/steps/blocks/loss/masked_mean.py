"""Means over what a mask keeps, with a denominator that may be that of a larger batch.

Shape legend: ``_B`` sequences, ``_T`` tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

EPSILON = 1e-8
"""Added to every denominator, as NeMo-RL does, so that an empty mask gives 0."""


@dataclass(frozen=True)
class Counts:
    """The denominators of one optimizer step, over all micro-batches and data-parallel ranks.

    ``tokens`` is the sum of token mask times sample mask, ``sequences`` the sum of the sample
    mask, ``positive_tokens`` the tokens of sequences with a positive reward. With these every
    micro-batch contributes a part, and the parts add up to the same loss however it is cut.
    """

    tokens: float
    sequences: float
    positive_tokens: float = 0.0

    def __add__(self, other: Counts) -> Counts:
        return Counts(
            self.tokens + other.tokens,
            self.sequences + other.sequences,
            self.positive_tokens + other.positive_tokens,
        )


def count(token_mask_BT: Tensor, sample_mask_B: Tensor, rewards_B: Tensor | None = None) -> Counts:
    """This batch's part of the denominators; sum them over micro-batches and ranks."""
    tokens_B = (token_mask_BT.double() * sample_mask_B.double()[:, None]).sum(-1)
    positive = 0.0 if rewards_B is None else (tokens_B * (rewards_B > 0)).sum().item()
    return Counts(tokens_B.sum().item(), sample_mask_B.double().sum().item(), positive)


def masked_mean(
    values: Tensor, mask: Tensor, *, denominator: float | None = None, dim: int | None = None
) -> Tensor:
    """``sum(values * mask) / (denominator + 1e-8)``; the denominator is ``sum(mask)`` if not given.

    Over all dimensions, or over ``dim``. Values that the mask drops must be finite all the same.
    """
    kept = values * mask
    total = kept.sum() if dim is None else kept.sum(dim)
    if denominator is not None:
        return total / (denominator + EPSILON)
    return total / ((mask.sum() if dim is None else mask.sum(dim)) + EPSILON)
