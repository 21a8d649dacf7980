"""Log-probs of given tokens, from logits that may be divided over tensor ranks."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from megatron.core import parallel_state
from megatron.core.tensor_parallel import vocab_parallel_cross_entropy
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from nemotron_style.steps.blocks.model.prefix_packing import PackedBatch

CHUNK_LOGITS = 2**26
"""Logits of a rank that are held at a time: in float32 a quarter of a gigabyte."""


def response_logprobs(model: nn.Module, packed: PackedBatch, *, temperature: float = 1.0) -> Tensor:
    """Log-prob of every response token, ``[B, N, R]`` float32, 0 where ``mask_BNR`` is off.

    Differentiable. On pipeline stages before the last one it is the stage's hidden states, which
    is what megatron-core's schedules pass on; ``microbatch.score`` hides that difference. The
    batch is moved to where the model is.
    """
    device = next(model.parameters()).device
    return model(packed.to(device), temperature=temperature)


def chunked_logprobs(
    head: Callable[[Tensor], Tensor],
    states_T: Tensor,
    labels_T: Tensor,
    *,
    vocabulary: int,
    temperature: float = 1.0,
) -> Tensor:
    """:func:`label_logprobs` of ``head(states_T)``, with logits of a part of the tokens at a time.

    The backward pass computes the logits of each part again. ``vocabulary`` is that of a rank.
    """

    def part(states: Tensor, labels: Tensor) -> Tensor:
        return label_logprobs(head(states), labels, temperature=temperature)

    size = max(1, CHUNK_LOGITS // vocabulary)
    if len(labels_T) <= size:
        return part(states_T, labels_T)
    parts = zip(states_T.split(size), labels_T.split(size), strict=True)
    # no random numbers are drawn here, so none have to be drawn again
    options = {"use_reentrant": False, "preserve_rng_state": False}
    return torch.cat([checkpoint(part, *each, **options) for each in parts])


def label_logprobs(logits: Tensor, labels_T: Tensor, *, temperature: float = 1.0) -> Tensor:
    """``log softmax(logits / temperature)[label]``, ``[T]`` in float32 or better.

    ``logits`` are ``[T, vocabulary / tensor ranks]``; with more than one tensor rank the softmax
    is taken over all of them.
    """
    if temperature != 1.0:
        # in float32: a division in bfloat16 would round the logits a second time
        wide = logits if logits.dtype is torch.float64 else logits.float()
        logits = wide / temperature
    if parallel_state.get_tensor_model_parallel_world_size() > 1:
        # megatron-core's loss works in place on float32 logits
        owned = logits.clone() if logits.dtype is torch.float32 else logits
        return -vocab_parallel_cross_entropy(owned[:, None], labels_T[:, None])[:, 0]
    wide = logits if logits.dtype is torch.float64 else logits.float()
    return -F.cross_entropy(wide, labels_T, reduction="none")
