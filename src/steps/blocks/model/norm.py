"""The norms of the families: RMSNorm or LayerNorm, by ``weight`` or by ``weight + 1``.

A norm stands before a block, on its output, or on queries and keys. Where the heads of a full
query norm are divided over tensor ranks, the mean of squares is taken over all of them.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from megatron.core.tensor_parallel.layers import set_tensor_model_parallel_attributes
from megatron.core.tensor_parallel.mappings import (
    copy_to_tensor_model_parallel_region,
    reduce_from_tensor_model_parallel_region,
)
from megatron.core.transformer.utils import make_sharded_tensors_for_checkpoint
from torch import Tensor, nn

from nemotron_style.steps.blocks.model.megatron_config import MegatronConfig


class Norm:
    """Makes the norm that a config asks for, as megatron-core builds modules: by calling it."""

    def __new__(  # type: ignore[misc]
        cls, config: MegatronConfig, hidden_size: int, eps: float, **_unused: object
    ) -> nn.Module:
        kind = _KINDS[config.model.normalization, config.model.zero_centered_gamma]
        return kind(hidden_size, eps=eps)


class RMSNorm(nn.RMSNorm):
    """torch's RMSNorm with a gradient of its own on the CPU, where torch has no kernel for one."""

    def forward(self, input: Tensor) -> Tensor:
        if input.device.type == "cpu" and input.dtype in (torch.float32, torch.float64):
            return _CpuRMSNorm.apply(input, self.weight, self.eps)
        return super().forward(input)


class _CpuRMSNorm(torch.autograd.Function):
    """``x * r * weight`` with ``r = 1 / rms(x)``; the forward pass is torch's to the last bit.

    torch's gradient is that of each of its operations: thirteen passes over tensors of the size
    of ``x``, and ``x * r`` is kept. These are five, both sums being products of ``x * gradient``
    with a vector, and a training step takes 2 to 3% less.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        r = x.square().mean(-1, keepdim=True).add_(eps).rsqrt_()
        ctx.save_for_backward(x, weight, r)
        return (x * r).mul_(weight)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        [gradient], (x, weight, r) = gradients, ctx.saved_tensors
        size = x.shape[-1]
        product = (gradient * x).reshape(-1, size)
        of_weight = r.reshape(-1) @ product if ctx.needs_input_grad[1] else None
        if not ctx.needs_input_grad[0]:
            return None, of_weight, None
        # r depends on all of x: d r / d x = - r**3 * x / size
        slope = (product @ weight).view(r.shape) * r.pow(3) * (-1 / size)
        return (gradient * weight).mul_(r).addcmul_(x, slope), of_weight, None


class ZeroCenteredRMSNorm(nn.RMSNorm):
    """RMSNorm that multiplies by ``weight + 1``, in float32 as the sum would be rounded below."""

    def forward(self, input: Tensor) -> Tensor:
        wide = widen(input)
        gain = widen(self.weight) + 1
        return F.rms_norm(wide, self.normalized_shape, gain, self.eps).to(input.dtype)


class ZeroCenteredLayerNorm(nn.LayerNorm):
    """LayerNorm that multiplies by ``weight + 1``."""

    def forward(self, input: Tensor) -> Tensor:
        return F.layer_norm(input, self.normalized_shape, self.weight + 1, self.bias, self.eps)


_KINDS: dict[tuple[str, bool], type[nn.Module]] = {
    ("rmsnorm", False): RMSNorm,
    ("rmsnorm", True): ZeroCenteredRMSNorm,
    ("layernorm", False): nn.LayerNorm,
    ("layernorm", True): ZeroCenteredLayerNorm,
}


class FullNorm(nn.Module):
    """RMSNorm over all heads of a token at once, of which tensor ranks hold some each."""

    def __init__(self, heads: int, head_size: int, *, eps: float, tp_group: Any) -> None:
        super().__init__()
        self.width, self.eps, self.tp_group = heads * head_size, eps, tp_group
        self.weight = nn.Parameter(torch.ones(self.width // tp_group.size()))
        set_tensor_model_parallel_attributes(self.weight, is_parallel=True, dim=0, stride=1)

    def forward(self, states: Tensor) -> Tensor:
        """``[S, B, groups, heads of a group, head size]`` to the same shape."""
        flat = states.flatten(2)
        if self.tp_group.size() == 1:
            return F.rms_norm(flat, self.weight.shape, self.weight, self.eps).view(states.shape)
        wide = widen(flat)
        squares = wide.square().sum(-1, keepdim=True)
        # Every rank's output depends on every rank's squares, so their gradients are summed too.
        squares = reduce_from_tensor_model_parallel_region(squares, self.tp_group)
        squares = copy_to_tensor_model_parallel_region(squares, self.tp_group)
        normed = wide * torch.rsqrt(squares / self.width + self.eps) * self.weight
        return normed.to(states.dtype).view(states.shape)

    def sharded_state_dict(
        self, prefix: str = "", sharded_offsets: tuple[Any, ...] = (), metadata: Any = None
    ) -> dict[str, Any]:
        """megatron-core's description of the weight, a slice of the whole."""
        return make_sharded_tensors_for_checkpoint(
            self.state_dict(keep_vars=True),
            prefix,
            {"weight": 0},
            sharded_offsets,
            tp_group=self.tp_group,
            dp_cp_group=metadata["dp_cp_group"],
        )


def widen(states: Tensor) -> Tensor:
    """Half precision in float32, other types as they are."""
    return states.float() if states.dtype in (torch.float16, torch.bfloat16) else states
