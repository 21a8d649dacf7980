"""Keys and values that are kept while responses grow.

Shape legend: ``_P`` prompts, ``_V`` vocabulary, ``K`` key-value heads, ``T`` tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Prefix:
    """Prompts of one length, computed once: keys and values ``[layers, P, K, T, head size]``."""

    keys: Tensor
    values: Tensor
    logits_PV: Tensor

    def one(self, number: int) -> Prefix:
        """The prompt ``number`` alone."""
        here = slice(number, number + 1)
        return Prefix(self.keys[:, here], self.values[:, here], self.logits_PV[here])


class Cache:
    """Keys ``[layers, slots, K, head size, T]`` and values ``[layers, slots, K, T, head size]``.

    Keys are stored transposed, as the product with a query reads them.
    """

    def __init__(self, shape: tuple[int, ...], like: Tensor) -> None:
        # Zeros: a masked column is still multiplied by its weight of 0, and 0 * nan is nan.
        self.values = like.new_zeros(shape)
        self.keys = like.new_zeros((*shape[:3], shape[4], shape[3]))
        by_head = (states.flatten(1, 2).unbind() for states in (self.keys, self.values))
        self.layers = list(zip(*by_head, strict=True))

    def start(self, prefix: Prefix, slots: slice) -> None:
        """Begin ``slots`` with the one prompt of ``prefix``."""
        width = prefix.keys.shape[3]
        self.keys[:, slots, :, :, :width] = prefix.keys.transpose(3, 4)
        self.values[:, slots, :, :width] = prefix.values

    def move(self, source: int, target: int, width: int) -> None:
        """Put the first ``width`` tokens of one slot in the place of another slot."""
        self.keys[:, target, :, :, :width] = self.keys[:, source, :, :, :width]
        self.values[:, target, :, :width] = self.values[:, source, :, :width]
