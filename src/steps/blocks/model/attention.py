"""Attention of megatron-core's layers by torch's fused kernels, over three layouts of a row.

*Causal*: every token sees those before it. *Shared prefix*: a row is ``[prompt, r_1 .. r_N]``
with the prompt padded on the right to ``P`` tokens and each response to ``R``; the prompt is
causal, and each response sees the prompt and itself but none of the other responses. The prompt
is thus computed once for N responses instead of N times. *Packed*: the batch is one row of several
samples without padding; each is causal and sees nothing of the others.

In all of them a layer may have a window: a token sees only so many tokens before it.

Rotary positions are applied here, from the position each token really has, because in a shared
row all responses begin at the same position, and in a packed one all samples.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from megatron.core.packed_seq_params import PackedSeqParams
from torch import Tensor, nn

from nemotron_style.steps.blocks.model.megatron_config import MegatronConfig
from nemotron_style.steps.blocks.model.packed_attention import (
    attend_at_once,
    attend_by_length,
    has_kernel,
)
from nemotron_style.steps.blocks.model.rotary import rotary_tables, rotate
from nemotron_style.steps.blocks.settings.model_config import ModelConfig


@dataclass(frozen=True)
class Layout:
    """Which keys a query of a row may see.

    With ``lengths`` there is one row, of samples of so many tokens one after the other; with
    ``count`` rows share a prompt between responses, and otherwise they are causal.

    ``prompt_lengths_P`` is given only where the prompts of a batch differ in length, so that
    their padding has to be hidden from the responses.
    """

    prompt_width: int = 0
    count: int = 0
    response_width: int = 0
    prompt_lengths_P: Tensor | None = None
    lengths: tuple[int, ...] = ()

    def response_mask(self, window: int | None = None) -> Tensor:
        """Visible (prompt + own response) keys: bool ``[1 or rows, 1, R, P + R]``.

        With a ``window`` a token sees that many real tokens, itself among them.
        """
        width, count = self.response_width, self.count
        lengths_P = self.prompt_lengths_P
        device = None if lengths_P is None else lengths_P.device
        own = torch.ones(width, width, dtype=torch.bool, device=device).tril()
        if window is not None:
            own = own.triu(1 - window)
        if lengths_P is None:
            prompt = torch.ones(width, self.prompt_width, dtype=torch.bool)
            if window is not None:
                # token i of a response stands i + P - j tokens behind token j of the prompt
                prompt = prompt.triu(self.prompt_width + 1 - window)
            return torch.cat([prompt, own], dim=1)[None, None]
        column = torch.arange(self.prompt_width, device=device)
        real = (column < lengths_P[:, None])[:, None].expand(-1, width, -1)
        if window is not None:
            position = lengths_P[:, None] + torch.arange(width, device=device)
            real = real & (position[:, :, None] - column < window)
        # [B, R, P] -> [B * N, R, P]: every token of every response sees its prompt's real tokens
        real = real.repeat_interleave(count, dim=0)
        return torch.cat([real, own.expand(len(real), -1, -1)], dim=2)[:, None]


class View(NamedTuple):
    """What the layers of one sort use: those that see the whole row, or those with a window.

    cos and sin are ``[S, 1 or B, 1, 1, rotary size]``. ``causal_mask`` is ``[S, S]`` (``[P, P]``
    in a shared row, that of the longest sample in a packed one) where a window cuts into it,
    ``response_mask`` that of a shared row.
    """

    cos: Tensor
    sin: Tensor
    causal_mask: Tensor | None
    response_mask: Tensor | None


class AttentionContext(PackedSeqParams):
    """What the core attention of every layer needs to know about a batch.

    It travels as ``packed_seq_params``, the one argument that megatron-core hands to the core
    attention untouched, under activation recomputation too.
    """

    def __init__(self, layout: Layout, *, positions: Tensor, config: ModelConfig) -> None:
        super().__init__()
        self.layout, self.width = layout, positions.shape[-1]
        if layout.lengths:  # under megatron-core's names
            starts = torch.tensor([0, *layout.lengths], device=positions.device)
            self.cu_seqlens_q = starts.cumsum(0, dtype=torch.int32)
            self.max_seqlen_q = max(layout.lengths)
        cos, sin = rotary_tables(positions, config)
        mask = layout.response_mask().to(positions.device) if layout.count else None
        self.whole = self.windowed = View(cos, sin, None, mask)
        if config.sliding_window is not None:
            self.windowed = self._view(positions, config, config.sliding_window)

    def _view(self, positions: Tensor, config: ModelConfig, window: int) -> View:
        """The view of layers with a window; masks that it does not cut into are the others'."""
        cos, sin = self.whole.cos, self.whole.sin
        if config.local_rope_theta is not None:
            cos, sin = rotary_tables(positions, config, local=True)
        layout, mask = self.layout, self.whole.response_mask
        width = layout.prompt_width if layout.count else positions.shape[-1]
        width = self.max_seqlen_q or width
        if layout.count and layout.prompt_width + layout.response_width > window:
            mask = layout.response_mask(window).to(positions.device)
        causal = None
        if width > window:
            square = torch.ones(width, width, dtype=torch.bool, device=positions.device)
            causal = square.tril().triu(1 - window)
        return View(cos, sin, causal, mask)


class CoreAttention(nn.Module):
    """Core attention of a layer: rotary positions, then the fused kernel."""

    def __init__(self, config: MegatronConfig, layer_number: int, **_unused: object) -> None:
        super().__init__()
        self.window = config.model.window_of(layer_number)
        self.scale, self.softcap = config.model.query_scale, config.model.attention_softcap

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, context: AttentionContext
    ) -> Tensor:
        """``[S, B, groups, heads of a group, head size]`` to ``[S, B, heads * head size]``.

        Keys and values have one head in each group.
        """
        view = context.whole if self.window is None else context.windowed
        # Not by megatron-core, which knows a token's index in the row and not its position.
        cos, sin = view.cos.to(query.dtype), view.sin.to(query.dtype)
        query, key = rotate(query, cos, sin), rotate(key, cos, sin)
        if context.layout.lengths:
            # [S, 1, groups, heads, head size] -> [S, all heads, head size], views
            by_token = [states.flatten(2, 3).squeeze(1) for states in (query, key, value)]
            return self._attend_packed(*by_token, context, view).flatten(1)[:, None]
        # [S, B, groups, heads, head size] -> [B, all heads, S, head size], views
        by_head = [states.flatten(2, 3).permute(1, 2, 0, 3) for states in (query, key, value)]
        if view.response_mask is None:
            mixed = self._attend(*by_head, view.causal_mask)
        else:
            mixed = self._attend_shared(*by_head, context.layout, view)
        return mixed.permute(2, 0, 1, 3).flatten(2)

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        """Over the keys that the mask shows; without a mask, over those before each query."""
        if self.softcap is not None:
            return attend_capped(
                query, key, value, mask=mask, scale=self.scale, softcap=self.softcap
            )
        return F.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=mask,
            is_causal=mask is None,
            scale=self.scale,
            enable_gqa=query.shape[1] != key.shape[1],
        )

    def _attend_packed(
        self, query: Tensor, key: Tensor, value: Tensor, context: AttentionContext, view: View
    ) -> Tensor:
        """``[S, heads, head size]`` of one row, every sample over itself."""
        if self.softcap is None and has_kernel(query):
            return attend_at_once(
                *(query, key, value),
                starts=context.cu_seqlens_q,
                longest=context.max_seqlen_q,
                scale=self.scale,
                window=self.window,
            )
        return attend_by_length(
            *(query, key, value),
            lengths=context.layout.lengths,
            mask=view.causal_mask,
            attend=self._attend,
        )

    def _attend_shared(
        self, query: Tensor, key: Tensor, value: Tensor, layout: Layout, view: View
    ) -> Tensor:
        """``[B, heads, P + N * R, head size]``; the prompt once, then all responses at once."""
        count = layout.count
        # Split, not sliced: the gradient of a slice is as large as the whole, filled with zeros.
        widths = [layout.prompt_width, count * layout.response_width]
        (query_P, query), (key_P, key), (value_P, value) = (
            states.split(widths, dim=2) for states in (query, key, value)
        )
        prompt = self._attend(query_P, key_P, value_P, view.causal_mask)
        responses = self._attend(
            _by_response(query, count),
            _with_prompt(key_P, key, count),
            _with_prompt(value_P, value, count),
            view.response_mask,
        )
        batch, heads, _, size = query.shape
        rows = responses.view(batch, count, heads, -1, size).transpose(1, 2).flatten(2, 3)
        return torch.cat([prompt, rows], dim=2)


def attend_capped(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    mask: Tensor | None,
    scale: float | None,
    softcap: float,
) -> Tensor:
    """Attention whose scores stay within ``softcap``, which no fused kernel of torch does.

    Shapes are those of ``scaled_dot_product_attention`` with ``enable_gqa``. ``mask`` (bool) says
    which keys are visible; None: those up to each query. ``scale`` None is ``size ** -0.5``.
    """
    heads, width = query.shape[1] // key.shape[1], query.shape[2]
    # [B, heads, S, size] -> [B, groups, heads of a group, S, size], beside [B, groups, 1, S, size]
    query = query.unflatten(1, (-1, heads))
    scores = query @ key[:, :, None].transpose(-1, -2) * (scale or query.shape[-1] ** -0.5)
    scores = softcap * torch.tanh(scores / softcap)
    if mask is None:
        mask = torch.ones(width, width, dtype=torch.bool, device=query.device).tril()
    elif mask.dim() == 4:
        mask = mask[:, :, None]
    shares = scores.masked_fill(~mask, -torch.inf).softmax(-1, dtype=torch.float32)
    return (shares.to(value.dtype) @ value[:, :, None]).flatten(1, 2)


def _by_response(states: Tensor, count: int) -> Tensor:
    """``[B, heads, N * R, size]`` to ``[B * N, heads, R, size]``."""
    batch, heads, _, size = states.shape
    return states.reshape(batch, heads, count, -1, size).transpose(1, 2).flatten(0, 1)


def _with_prompt(prompt: Tensor, responses: Tensor, count: int) -> Tensor:
    """Each response's keys behind those of its prompt: ``[B * N, heads, P + R, size]``."""
    own = _by_response(responses, count)
    before = prompt[:, None].expand(-1, count, -1, -1, -1).flatten(0, 1)
    return torch.cat([before, own], dim=2)
