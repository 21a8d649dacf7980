"""Summed log-probs of many given responses, in as few passes as their lengths allow.

The responses of a prompt share its computation (:mod:`packing`), and groups of like size share a
pass. What a response gets is a sum in float64 over exactly its own tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import nn

from nemotron_style.steps.blocks.model.logprob import response_logprobs
from nemotron_style.steps.blocks.model.prefix_packing import Group, pack


@torch.inference_mode()
def score_groups(
    model: nn.Module,
    groups: Sequence[Group],
    *,
    micro_batch_tokens: int,
    last: Sequence[int] | None = None,
) -> list[list[float]]:
    """``log p(response | prompt)`` of every response of every group, in the order given.

    With ``last`` only the last ``last[g]`` tokens of each response of group g count: the others
    are then part of what is given. A pass holds ``micro_batch_tokens`` padded tokens, or one
    group when that alone is larger.
    """
    device = next(model.parameters()).device
    sums: list[list[float]] = [[] for _ in groups]
    for members in _passes(groups, micro_batch_tokens):
        packed = pack([groups[index] for index in members]).to(device)
        logprobs_BNR = response_logprobs(model, packed).double()
        if last is not None:
            wanted_B = torch.tensor([last[index] for index in members], device=device)
            logprobs_BNR = logprobs_BNR * _tail(packed.mask_BNR, wanted_B)
        for index, row in zip(members, logprobs_BNR.sum(-1).tolist(), strict=True):
            sums[index] = row
    return sums


def _tail(mask_BNR: torch.Tensor, wanted_B: torch.Tensor) -> torch.Tensor:
    """Which tokens are among the last ``wanted_B`` of their response."""
    lengths_BN1 = mask_BNR.sum(-1, keepdim=True)
    places_R = torch.arange(mask_BNR.shape[-1], device=mask_BNR.device)
    return mask_BNR & (places_R >= lengths_BN1 - wanted_B[:, None, None])


def _passes(groups: Sequence[Group], limit: int) -> Iterator[list[int]]:
    """Indices of the groups of each pass: as many responses each, and of like lengths."""
    sizes = [_size(group) for group in groups]
    order = sorted(range(len(groups)), key=sizes.__getitem__)
    members: list[int] = []
    for index in order:
        candidate = [*members, index]
        if members and not _fits([sizes[one] for one in candidate], limit):
            yield members
            candidate = [index]
        members = candidate
    if members:
        yield members


def _size(group: Group) -> tuple[int, int, int]:
    """Responses, tokens of the prompt, tokens of the longest response."""
    longest = max(len(response) for response in group.responses_ids)
    return len(group.responses_ids), len(group.prompt_ids), longest


def _fits(sizes: Sequence[tuple[int, int, int]], limit: int) -> bool:
    counts, prompts, responses = zip(*sizes, strict=True)
    padded = len(sizes) * (max(prompts) + counts[0] * max(responses))
    return len(set(counts)) == 1 and padded <= limit
