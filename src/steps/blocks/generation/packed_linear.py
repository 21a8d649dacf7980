"""The product of a few rows with a weight that many steps share.

On a CPU torch hands float32 products to MKL, which on processors of other makers leaves half of
their speed unused, and which reads the weight in the order it is stored in. oneDNN, which every
build of torch for x86 and Arm contains, does neither: 32 rows times 512 x 8192 take a third of the
time on an AMD EPYC. torch.compile uses the same two operators; they have no public name.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

PACKED_FROM = 2**16
"""Elements of the smallest weight that is packed; below it the call costs what packing saves."""


@dataclass(frozen=True)
class PackedLinear:
    """A weight ``[out, in]`` and, where it pays, a copy in the order that oneDNN multiplies in.

    ``bias`` is ``[out]``, or None.
    """

    plain: Tensor
    packed: Tensor | None
    bias: Tensor | None = None

    def __call__(self, states: Tensor) -> Tensor:
        """``[.., in]`` to ``[.., out]``."""
        if self.packed is None:
            return F.linear(states, self.plain, self.bias)
        return torch.ops.mkldnn._linear_pointwise(states, self.packed, self.bias, "none", [], "")


@dataclass(frozen=True)
class AdaptedLinear:
    """A product with a weight, and what an adapter adds to it: ``scale * B A x``."""

    weight: PackedLinear
    lora_A: Tensor
    lora_B: Tensor
    scale: float

    def __call__(self, states: Tensor) -> Tensor:
        """``[.., in]`` to ``[.., out]``."""
        small = F.linear(states, self.lora_A) * self.scale
        return self.weight(states) + F.linear(small, self.lora_B)


def pack_linear(plain: Tensor, bias: Tensor | None = None, *, rows: int) -> PackedLinear:
    """``plain`` for products of about ``rows`` rows; a packed one is a copy as of now."""
    pays = plain.device.type == "cpu" and plain.numel() >= PACKED_FROM and _available(plain.dtype)
    packed = torch.ops.mkldnn._reorder_linear_weight(plain, rows) if pays else None
    return PackedLinear(plain, packed, bias)


def _available(dtype: torch.dtype) -> bool:
    known = all(hasattr(torch.ops.mkldnn, name) for name in _OPERATORS)
    if dtype is torch.bfloat16:
        return known and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return known and dtype is torch.float32 and torch.backends.mkldnn.is_available()


_OPERATORS = ("_linear_pointwise", "_reorder_linear_weight", "_is_mkldnn_bf16_supported")
