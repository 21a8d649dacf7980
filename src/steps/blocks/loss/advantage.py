"""How much better a sample is than the others of its group (GRPO, arXiv 2402.03300).

A group is the samples of one prompt, named by an id of its own: two rows that happen to hold the
same prompt stay two groups. Invalid samples (a judgement that failed, a log-prob that is missing)
are no part of any mean, deviation or count, whatever number stands in their place. Everything is
float64, and deviations are taken from a member of the group, so that a constant group gives
advantages and deviations of exactly 0.

Shape legend: ``_B`` samples, ``_T`` tokens.

Source: NeMo-RL's estimators ``grpo`` and ``reinforce_plus_plus``. Theirs are float32 and find a
group by equal prompt tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt

import torch
from torch import Tensor

from nemotron_style.steps.blocks.loss.kl import estimate_kl

STD_FLOOR = 1e-6
VARIANCE_FLOOR = 1e-8


@dataclass(frozen=True)
class Baseline:
    """What a sample is compared with: mean and deviation of its group, float64 ``[B]``."""

    mean_B: Tensor
    std_B: Tensor


def group_baseline(
    rewards_B: Tensor,
    groups: Sequence[int],
    *,
    valid_B: Tensor | None = None,
    leave_one_out: bool = True,
    least: int = 2,
) -> Baseline:
    """Mean and deviation of each sample's group, or of the others in it.

    With ``leave_one_out`` a sample is compared with the ``m = n - 1`` other valid members, else
    with all ``m = n``; the deviation is that of a sample, ``sqrt(sum (r - mean)^2 / (m - 1))``,
    and 0 where ``m = 1``. A sample that is invalid, or the only valid one, has its own reward as
    mean (NaN stays NaN) and deviation 0.

    Raises ValueError for a group of fewer than ``least`` members, which no baseline fits, and for
    a valid reward that is not finite.
    """
    rewards_B = rewards_B.double()
    usable_B = torch.ones_like(rewards_B, dtype=torch.bool) if valid_B is None else valid_B.bool()
    if not rewards_B[usable_B].isfinite().all():
        raise ValueError("a valid sample has a reward that is not finite")
    mean_B, std_B = rewards_B.clone(), torch.zeros_like(rewards_B)
    for name, members in _members(groups).items():
        if len(members) < least:
            raise ValueError(f"group {name} has {len(members)} samples and needs {least}")
        kept = torch.tensor([place for place in members if usable_B[place]], dtype=torch.long)
        if len(kept) > 1:
            mean_B[kept], std_B[kept] = _moments(rewards_B[kept], leave_one_out)
    return Baseline(mean_B, std_B)


def group_advantages(
    rewards_B: Tensor,
    baseline: Baseline,
    *,
    valid_B: Tensor | None = None,
    normalize: bool = True,
) -> Tensor:
    """``(r - mean) / (std + 1e-6)``, float64 ``[B]``; 0 for an invalid sample.

    Where the deviation is 0 the difference is left as it is. That is so for every pair with
    leave-one-out, and for the only winner of a group.
    """
    difference_B = rewards_B.double() - baseline.mean_B
    if normalize:
        scaled_B = difference_B / (baseline.std_B + STD_FLOOR)
        difference_B = torch.where(baseline.std_B > 0, scaled_B, difference_B)
    return difference_B if valid_B is None else difference_B.where(valid_B.bool(), 0.0)


def clip_advantages(advantages: Tensor, *, low: float | None, high: float | None) -> Tensor:
    """Bounded to ``[low, high]``, each of which may be None; the last step before the loss."""
    if low is None and high is None:
        return advantages
    return advantages.clamp(low, high)


def subtract_kl(
    advantages_BT: Tensor,
    logprobs_BT: Tensor,
    reference_BT: Tensor,
    *,
    coefficient: float,
    kind: str = "k3",
) -> Tensor:
    """``A - coefficient * KL`` token by token: the KL penalty as a part of the reward."""
    return advantages_BT - coefficient * estimate_kl(logprobs_BT, reference_BT, kind=kind)


def spread_moments(advantages_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """``[count, sum, sum of squares]`` float64 of the tokens that count; add up over all ranks."""
    kept_BT = torch.where(mask_BT > 0, advantages_BT.double(), 0.0)
    weight_BT = mask_BT.double()
    sums = [weight_BT, kept_BT * weight_BT, kept_BT.square() * weight_BT]
    return torch.stack([part.sum() for part in sums])


def whiten(advantages_BT: Tensor, moments_3: Tensor) -> Tensor:
    """Mean 0 and variance 1 over the whole batch that :func:`spread_moments` summed up.

    The last step of ``reinforce_plus_plus`` (arXiv 2501.03262), whose advantages are rewards
    minus the mean of the whole group. Raises ValueError where there is no token.
    """
    total, first, second = map(float, moments_3.tolist())
    if total <= 0:
        raise ValueError("there is no token to take a mean over")
    mean = first / total
    variance = max(second / total - mean**2, VARIANCE_FLOOR)
    return (advantages_BT.double() - mean) / sqrt(variance)


def _members(groups: Sequence[int]) -> dict[int, list[int]]:
    """The places of each group's samples, in their order."""
    members: dict[int, list[int]] = {}
    for place, name in enumerate(groups):
        members.setdefault(int(name), []).append(place)
    return members


def _moments(rewards_N: Tensor, leave_one_out: bool) -> tuple[Tensor, Tensor]:
    """Mean and deviation of what each of ``N >= 2`` samples is compared with."""
    size = len(rewards_N)
    against = rewards_N.expand(size, size)
    if leave_one_out:
        others = ~torch.eye(size, dtype=torch.bool, device=rewards_N.device)
        against = against[others].view(size, size - 1)
    anchor = against[:, :1]  # rounding cannot make a deviation out of equal rewards
    offsets = against - anchor
    mean = offsets.mean(-1, keepdim=True)
    count = against.shape[1]
    spread = (offsets - mean).square().sum(-1) / max(count - 1, 1)
    return (anchor + mean)[:, 0], spread.sqrt()
