"""Attention over a row of several samples without padding, each of which sees itself alone.

On CUDA devices torch's variable-length kernel takes all samples at once. Elsewhere, and where that
kernel cannot do what a layer asks for, samples of one length that stand side by side are a batch
of the usual kernel, by views of the row: nothing is copied and nothing padded.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from inspect import signature
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

Attend = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]
"""Attention of ``[B, heads, S, head size]`` under a mask; without one, of causal rows."""


@cache
def kernel_options() -> frozenset[str]:
    """What torch's variable-length kernel can be told; nothing where there is none."""
    # Imported late: it loads torch's compiler, most of a second that a start on a CPU can save.
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:  # torch before 2.10
        return frozenset()
    return frozenset(signature(varlen_attn).parameters)


def has_kernel(query: Tensor) -> bool:
    """Whether torch's variable-length kernel can be given such queries."""
    return (
        query.device.type == "cuda"
        and query.dtype in (torch.float16, torch.bfloat16)
        and query.shape[-1] <= 256
        # the kernel of torch 2.10 has neither a scale nor a window
        and kernel_options() >= {"scale", "window_size"}
    )


def attend_at_once(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    starts: Tensor,
    longest: int,
    scale: float | None,
    window: int | None,
) -> Tensor:
    """``[S, heads, head size]`` of one row, by torch's variable-length kernel.

    ``starts`` (int32) is where each sample begins, and the end of the last one; ``longest`` the
    tokens of the longest. A token sees ``window`` tokens of its sample, itself among them.
    """
    from torch.nn.attention.varlen import varlen_attn

    options: dict[str, Any] = {}
    if (repeats := query.shape[1] // key.shape[1]) > 1:
        if "enable_gqa" in kernel_options():
            options["enable_gqa"] = True
        else:
            key, value = (each.repeat_interleave(repeats, dim=1) for each in (key, value))
    before = -1 if window is None else window - 1
    return varlen_attn(
        *(query, key, value, starts, starts, longest, longest),
        scale=scale,
        window_size=(before, 0),
        **options,
    )


def attend_by_length(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    lengths: tuple[int, ...],
    mask: Tensor | None,
    attend: Attend,
) -> Tensor:
    """The same by ``attend``, once for each run of samples of one length.

    ``mask`` is ``[longest, longest]``, of the longest sample; a shorter one has its corner.
    """
    runs = [(length, len(list(samples))) for length, samples in groupby(lengths)]
    # Split, not sliced: the gradient of a slice is as large as the whole, filled with zeros.
    widths = [length * count for length, count in runs]
    parts = list(zip(*(states.split(widths) for states in (query, key, value)), strict=True))
    if len(runs) == 1:  # nothing to split, whose gradient would be copied together again
        parts = [(query, key, value)]
    mixed = []
    for (length, count), part in zip(runs, parts, strict=True):
        # [count * length, heads, head size] -> [count, heads, length, head size]
        by_head = [states.unflatten(0, (count, length)).transpose(1, 2) for states in part]
        corner = None if mask is None else mask[:length, :length]
        mixed.append(attend(*by_head, corner).transpose(1, 2).flatten(0, 1))
    return torch.cat(mixed) if len(mixed) > 1 else mixed[0]
