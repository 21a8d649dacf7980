"""Summed log-probs of many responses, in as few passes as their lengths allow."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from nemotron_style.steps.blocks.model.logprob import response_logprobs
from nemotron_style.steps.blocks.model.prefix_packing import Group
from nemotron_style.steps.blocks.training.microbatch_plan import plan_microbatches


@torch.inference_mode()
def score_groups(
    model: nn.Module,
    groups: Sequence[Group],
    *,
    micro_batch_tokens: int,
    last: Sequence[int] | None = None,
) -> list[list[float]]:
    """``log p(response | prompt)`` of every response of every group, in their order.

    Each is a sum in float64 over the response's own tokens; with ``last`` over the last
    ``last[g]`` of them, so that the others count as prompt. A pass holds
    ``micro_batch_tokens`` padded tokens, or one group when that alone is larger.
    """
    device = next(model.parameters()).device
    sums: list[list[float]] = [[] for _ in groups]
    for batch in plan_microbatches(groups, max_tokens=micro_batch_tokens, deal=False):
        packed = batch.pack(groups).to(device)
        logprobs_BNR = response_logprobs(model, packed).double()
        if last is not None:
            wanted_B = torch.tensor([last[part.group] for part in batch.parts], device=device)
            logprobs_BNR = logprobs_BNR * _tail(packed.mask_BNR, wanted_B)
        for part, row in zip(batch.parts, logprobs_BNR.sum(-1).tolist(), strict=True):
            sums[part.group] = row
    return sums


def _tail(mask_BNR: torch.Tensor, wanted_B: torch.Tensor) -> torch.Tensor:
    """Which tokens are among the last ``wanted_B`` of their response."""
    lengths_BN1 = mask_BNR.sum(-1, keepdim=True)
    places_R = torch.arange(mask_BNR.shape[-1], device=mask_BNR.device)
    return mask_BNR & (places_R >= lengths_BN1 - wanted_B[:, None, None])
