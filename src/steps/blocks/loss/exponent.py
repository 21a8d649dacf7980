"""Exponentials of log-ratios that neither overflow nor make a NaN of a gradient.

Where ``e^x`` is infinite, a bound further on (a clip, a clamp, a mask) makes the value finite again
and its gradient 0; but the chain rule then multiplies that 0 by the infinite derivative of the
exponential. So the exponent is bounded here, and the caller is told where that changed the value.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def bounded_exp(exponent: Tensor) -> tuple[Tensor, Tensor]:
    """``e^exponent``, and where it is too large for its type: there it is a large constant.

    The bound is about e^80 in float32, so that sums and products with other numbers stay finite.
    """
    most = 0.9 * math.log(torch.finfo(exponent.dtype).max)
    return exponent.clamp(max=most).exp(), exponent > most
