"""Attention of megatron-core's layers by torch's fused kernel, over two layouts of a row.

*Causal*: every token sees those before it. *Shared prefix*: a row is ``[prompt, r_1 .. r_N]``
with the prompt padded on the right to ``P`` tokens and each response to ``R``; the prompt is
causal, and each response sees the prompt and itself but none of the other responses. The prompt
is thus computed once for N responses instead of N times.

Rotary positions are applied here, from the position each token really has, because in a shared
row all responses begin at the same position.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from megatron.core.packed_seq_params import PackedSeqParams
from torch import Tensor, nn


@dataclass(frozen=True)
class Layout:
    """Which keys a query of a row may see; a causal row when ``count`` is 0.

    ``prompt_lengths_P`` is given only where the prompts of a batch differ in length, so that
    their padding has to be hidden from the responses.
    """

    prompt_width: int = 0
    count: int = 0
    response_width: int = 0
    prompt_lengths_P: Tensor | None = None

    def response_mask(self) -> Tensor:
        """Visible (prompt + own response) keys: bool ``[1 or rows, 1, R, P + R]``."""
        width, count = self.response_width, self.count
        device = None if self.prompt_lengths_P is None else self.prompt_lengths_P.device
        own = torch.ones(width, width, dtype=torch.bool, device=device).tril()
        if self.prompt_lengths_P is None:
            prompt = torch.ones(width, self.prompt_width, dtype=torch.bool)
            return torch.cat([prompt, own], dim=1)[None, None]
        real = torch.arange(self.prompt_width, device=device) < self.prompt_lengths_P[:, None]
        # [B, P] -> [B * N, R, P]: every token of every response sees its own prompt's real tokens
        real = real.repeat_interleave(count, dim=0)[:, None].expand(-1, width, -1)
        return torch.cat([real, own.expand(len(real), -1, -1)], dim=2)[:, None]


class AttentionContext(PackedSeqParams):
    """What the core attention of every layer needs to know about a batch.

    It travels as ``packed_seq_params``, the one argument that megatron-core hands to the core
    attention untouched, under activation recomputation too. cos and sin are
    ``[S, 1 or B, 1, 1, head size]``; the mask is that of :meth:`Layout.response_mask`, or None.
    """

    def __init__(self, layout: Layout, *, positions: Tensor, head_size: int, theta: float) -> None:
        super().__init__()
        self.layout = layout
        self.cos, self.sin = rotary_tables(positions, head_size=head_size, theta=theta)
        self.mask = layout.response_mask().to(positions.device) if layout.count else None


def rotary_tables(positions: Tensor, *, head_size: int, theta: float) -> tuple[Tensor, Tensor]:
    """cos and signed sin of the rotary angles at ``positions`` ([S] or [B, S]).

    Both are ``[S, 1 or B, 1, 1, head size]`` in float32. The sine of the first half carries the
    minus sign of the rotation, so that rotating is ``x * cos + roll(x) * sin``.
    """
    half = torch.arange(0, head_size, 2, dtype=torch.float32, device=positions.device)
    frequencies = theta ** -(half / head_size)
    by_token = positions.t() if positions.dim() == 2 else positions[:, None]
    angles = by_token[:, :, None, None, None].float() * frequencies
    cos, sin = angles.cos(), angles.sin()
    return torch.cat([cos, cos], dim=-1), torch.cat([-sin, sin], dim=-1)


def rotate(states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate each pair (x_i, x_{i + half}) of ``[S, B, .., head size]`` by its angle."""
    swapped = states.roll(states.shape[-1] // 2, dims=-1)
    return torch.addcmul(states * cos, swapped, sin)


class CoreAttention(nn.Module):
    """Core attention of a layer: rotary positions, then the fused kernel."""

    def __init__(self, config: object, layer_number: int, **_unused: object) -> None:
        super().__init__()

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, context: AttentionContext
    ) -> Tensor:
        """``[S, B, groups, heads of a group, head size]`` to ``[S, B, heads * head size]``.

        Keys and values have one head in each group.
        """
        # Not by megatron-core, which knows a token's index in the row and not its position.
        cos, sin = context.cos.to(query.dtype), context.sin.to(query.dtype)
        query, key = rotate(query, cos, sin), rotate(key, cos, sin)
        # [S, B, groups, heads, head size] -> [B, all heads, S, head size], views
        by_head = [states.flatten(2, 3).permute(1, 2, 0, 3) for states in (query, key, value)]
        mixed = _causal(*by_head) if context.mask is None else _shared_prefix(*by_head, context)
        return mixed.permute(2, 0, 1, 3).flatten(2)


def _causal(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(
        query, key, value, is_causal=True, enable_gqa=query.shape[1] != key.shape[1]
    )


def _shared_prefix(query: Tensor, key: Tensor, value: Tensor, context: AttentionContext) -> Tensor:
    """``[B, heads, P + N * R, head size]`` each; the prompt once, then all responses at once."""
    count = context.layout.count
    # Split, not sliced: the gradient of a slice is as large as the whole, and filled with zeros.
    widths = [context.layout.prompt_width, count * context.layout.response_width]
    (query_P, query), (key_P, key), (value_P, value) = (
        states.split(widths, dim=2) for states in (query, key, value)
    )
    prompt = _causal(query_P, key_P, value_P)
    responses = F.scaled_dot_product_attention(
        _by_response(query, count),
        _with_prompt(key_P, key, count),
        _with_prompt(value_P, value, count),
        attn_mask=context.mask,
        enable_gqa=query.shape[1] != key.shape[1],
    )
    batch, heads, _, size = query.shape
    rows = responses.view(batch, count, heads, -1, size).transpose(1, 2).flatten(2, 3)
    return torch.cat([prompt, rows], dim=2)


def _by_response(states: Tensor, count: int) -> Tensor:
    """``[B, heads, N * R, size]`` to ``[B * N, heads, R, size]``."""
    batch, heads, _, size = states.shape
    return states.reshape(batch, heads, count, -1, size).transpose(1, 2).flatten(0, 1)


def _with_prompt(prompt: Tensor, responses: Tensor, count: int) -> Tensor:
    """Each response's keys behind those of its prompt: ``[B * N, heads, P + R, size]``."""
    own = _by_response(responses, count)
    before = prompt[:, None].expand(-1, count, -1, -1, -1).flatten(0, 1)
    return torch.cat([before, own], dim=2)
