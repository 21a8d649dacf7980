"""Means over what a mask keeps, with a denominator that may be that of a larger batch.

Shape legend: ``_B`` sequences, ``_T`` tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from torch import Tensor

EPSILON = 1e-8
"""Added to every denominator, as NeMo-RL does, so that an empty mask gives 0."""


@dataclass(frozen=True)
class Counts:
    """The denominators of one optimizer step, over all its micro-batches and data-parallel ranks.

    ``tokens`` is the sum of token mask times sample mask, ``sequences`` that of the sample mask,
    ``positive_tokens`` the tokens of sequences with a positive reward. Divided by these, the parts
    of micro-batches add up to the same loss however the batch is cut.
    """

    tokens: float
    sequences: float
    positive_tokens: float = 0.0

    @classmethod
    def of(
        cls, token_mask_BT: Tensor, sample_mask_B: Tensor, rewards_B: Tensor | None = None
    ) -> Self:
        """One batch's part of the denominators; add them up over micro-batches and ranks."""
        tokens_B = token_mask_BT.double().sum(-1) * sample_mask_B
        positive = 0.0 if rewards_B is None else (tokens_B * (rewards_B > 0)).sum().item()
        return cls(tokens_B.sum().item(), sample_mask_B.double().sum().item(), positive)

    def __add__(self, other: Counts) -> Counts:
        return Counts(
            self.tokens + other.tokens,
            self.sequences + other.sequences,
            self.positive_tokens + other.positive_tokens,
        )


def masked_mean(
    values: Tensor, mask: Tensor, *, denominator: float | None = None, dim: int | None = None
) -> Tensor:
    """``sum(values * mask) / (denominator + 1e-8)``, over all dimensions or over ``dim``.

    The denominator is ``sum(mask)`` if not given. Values that the mask drops must be finite too.
    """
    total = (values * mask).sum(dim)
    return total / ((mask.sum(dim) if denominator is None else denominator) + EPSILON)
