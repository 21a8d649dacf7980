"""Passes over kept responses: the loss of a global batch, and how far the policy has moved.

Responses to one prompt share its computation (:mod:`packing`). Groups are dealt out to data
ranks; what they add up to depends on neither ranks nor passes.

Shape legend: ``_B`` groups, ``_N`` responses of a group, ``_R`` tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby

import torch
from megatron.core.distributed import DistributedDataParallel
from torch import Tensor, nn

from nemotron_style.steps.blocks.model.parallel import data_rank, data_world, sum_over_data
from nemotron_style.steps.blocks.model.prefix_packing import Group, pack
from nemotron_style.steps.blocks.training.microbatch import accumulate_gradients, score


def accumulate(model: DistributedDataParallel, groups: Sequence[Group], *, size: int) -> float:
    """Gradients of the loss of a global batch into ``main_grad``; the loss, on every rank.

    It is ``-sum log p / T`` over all response tokens of all ``groups``, ``T`` of them: one
    denominator for the whole batch. ``size`` responses are in a pass, or fewer.
    """
    tokens = count_tokens(groups)
    assert tokens > 0, "a batch without a response token has no loss"

    def loss(logprobs_BNR: Tensor, _facts: None) -> tuple[Tensor, Tensor]:
        share = -logprobs_BNR.sum() / tokens  # 0 where there is no token
        return share, share.detach().double()

    work = [(pack(part), None) for part in cut(_mine(groups), size)]
    shares = accumulate_gradients(model, work, loss)
    return float(sum_over_data(torch.tensor(shares, dtype=torch.float64).sum()))


def measure_kl(
    model: nn.Module,
    start: nn.Module,
    groups: Sequence[Group],
    *,
    size: int,
    temperature: float = 1.0,
) -> float:
    """KL in nats of a response from the policy to the model it started from, estimated.

    ``groups`` are samples of the policy. A token's term is ``exp(d) - 1 - d`` with ``d = log
    p_start - log p`` (Schulman's k3): its mean under the policy is the KL of the next token, it is
    never negative, and it is 0 where the two are the same. A response has the sum of its tokens.
    """
    parts = [pack(part) for part in cut(_mine(groups), size)]
    now = score(model, parts, temperature=temperature)
    then = score(start, parts, temperature=temperature)
    total = torch.zeros((), dtype=torch.float64)
    for one, other in zip(now, then, strict=True):
        gap_BNR = other.double() - one.double()  # 0 where there is no token
        total += (gap_BNR.expm1() - gap_BNR).sum()
    return float(sum_over_data(total)) / sum(len(group.responses_ids) for group in groups)


def count_tokens(groups: Sequence[Group]) -> int:
    """Response tokens of ``groups``."""
    return sum(len(ids) for group in groups for ids in group.responses_ids)


def cut(groups: Sequence[Group], size: int) -> Iterator[list[Group]]:
    """Groups as passes of at most ``size`` responses, each of groups alike in number and length.

    A group of more responses is divided, and its prompt computed again for each part.
    """
    parts = [
        Group(group.prompt_ids, group.responses_ids[first : first + size])
        for group in groups
        for first in range(0, len(group.responses_ids), size)
    ]
    parts.sort(key=lambda part: (len(part.responses_ids), *_length(part)))
    for count, same in groupby(parts, key=lambda part: len(part.responses_ids)):
        members, together = list(same), max(1, size // count)
        yield from (members[at : at + together] for at in range(0, len(members), together))


def _mine(groups: Sequence[Group]) -> Sequence[Group]:
    return groups[data_rank() :: data_world()]


def _length(group: Group) -> tuple[int, int]:
    return max(len(ids) for ids in group.responses_ids), len(group.prompt_ids)
