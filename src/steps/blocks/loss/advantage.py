"""Group-relative advantages (GRPO, arXiv 2402.03300): how much better a sample is than its group.

A group holds the samples of one prompt and has an id: two rows with the same prompt stay two
groups. Invalid samples (a failed judgement, a missing log-prob) are no part of any mean, deviation
or count. Everything is float64.

Shape legend: ``_B`` samples, ``_N`` valid samples of one group, ``_M`` those that a sample is
compared with, ``_T`` tokens.

Source: NeMo-RL's estimator ``grpo``, which is float32 and finds a group by equal prompt tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

STD_FLOOR = 1e-6
"""Added to every deviation, as NeMo-RL does."""


@dataclass(frozen=True)
class Baseline:
    """Mean and deviation that each sample is compared with, float64 ``[B]``."""

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
    """Mean and deviation of each sample's group, or with ``leave_one_out`` of the others in it.

    The deviation is that of a sample, ``sqrt(sum (r - mean)^2 / (m - 1))``, and 0 for one value.
    A sample that is invalid, or the only valid one of its group, has its own reward as mean and
    deviation 0. Raises ValueError for a group of fewer than ``least`` members, and for a valid
    reward that is not finite.
    """
    rewards_B = rewards_B.double()
    usable_B = torch.ones_like(rewards_B, dtype=torch.bool) if valid_B is None else valid_B.bool()
    if not rewards_B[usable_B].isfinite().all():
        raise ValueError("a valid sample has a reward that is not finite")
    mean_B, std_B = rewards_B.clone(), torch.zeros_like(rewards_B)
    members: dict[int, list[int]] = {}
    for index, group in enumerate(groups):
        members.setdefault(int(group), []).append(index)
    for group, indices in members.items():
        if len(indices) < least:
            raise ValueError(f"group {group} has {len(indices)} samples and needs {least}")
        valid = [index for index in indices if usable_B[index]]
        if len(valid) > 1:
            mean_B[valid], std_B[valid] = _moments(rewards_B[valid], leave_one_out)
    return Baseline(mean_B, std_B)


def group_advantages(
    rewards_B: Tensor,
    baseline: Baseline,
    *,
    valid_B: Tensor | None = None,
    normalize: bool = True,
) -> Tensor:
    """``(r - mean) / (std + 1e-6)``, float64 ``[B]``; 0 for an invalid sample."""
    advantages_B = rewards_B.double() - baseline.mean_B
    if normalize:
        # Without a deviation (every pair under leave-one-out, the only winner of a group) the
        # difference stays as it is: dividing it by the floor alone would multiply it by 1e6.
        scaled_B = advantages_B / (baseline.std_B + STD_FLOOR)
        advantages_B = torch.where(baseline.std_B > 0, scaled_B, advantages_B)
    # The reward of an invalid sample may be NaN, so it is replaced, not multiplied by 0.
    return advantages_B if valid_B is None else advantages_B.where(valid_B.bool(), 0.0)


def clip_advantages(advantages: Tensor, low: float | None, high: float | None) -> Tensor:
    """The advantages within ``[low, high]``, each of which may be None; the last step of all."""
    return advantages if low is None and high is None else advantages.clamp(low, high)


@dataclass(frozen=True)
class Message:
    """A message of a rollout: its role, its length in tokens, and its faults."""

    role: str
    tokens: int
    is_invalid_tool_call: bool = False
    has_malformed_thinking: bool = False


def penalise_messages(
    advantages_T: Tensor,
    messages: Sequence[Message],
    *,
    invalid_tool_call: float | None,
    malformed_thinking: float | None,
) -> Tensor:
    """The advantages of a row of messages, with a fixed value on faulty ones of the assistant.

    Before clipping. None switches a penalty off. Source: NeMo-RL's ``invalid_tool_call_advantage``
    and ``malformed_thinking_advantage``.
    """
    changed_T, begin = advantages_T.clone(), 0
    for message in messages:
        tokens = slice(begin, begin + message.tokens)
        if message.role == "assistant":
            if message.is_invalid_tool_call and invalid_tool_call is not None:
                changed_T[tokens] = invalid_tool_call
            # Second, because it stands where both apply.
            if message.has_malformed_thinking and malformed_thinking is not None:
                changed_T[tokens] = malformed_thinking
        begin = tokens.stop
    return changed_T


def penalty_metrics(messages: Sequence[Message]) -> dict[str, float]:
    """How many messages of the assistant have each fault, and what share of them."""
    own = [message for message in messages if message.role == "assistant"]
    tool_calls = sum(message.is_invalid_tool_call for message in own)
    thinking = sum(message.has_malformed_thinking for message in own)
    return {
        "invalid_tool_call_rate": tool_calls / max(len(own), 1),
        "malformed_thinking_rate": thinking / max(len(own), 1),
        "num_invalid_tool_calls": tool_calls,
        "num_malformed_thinking": thinking,
        "num_assistant_messages": len(own),
    }


def _moments(rewards_N: Tensor, leave_one_out: bool) -> tuple[Tensor, Tensor]:
    """``[N]`` mean and deviation of what each of ``N >= 2`` samples is compared with."""
    size = len(rewards_N)
    compared_NM = rewards_N.expand(size, size)
    if leave_one_out:
        others = ~torch.eye(size, dtype=torch.bool, device=rewards_N.device)
        compared_NM = compared_NM[others].view(size, size - 1)
    # Taken from a member of the group, the offsets of equal rewards are exactly 0, and rounding
    # cannot make a deviation out of them.
    anchor_N1 = compared_NM[:, :1]
    offsets_NM = compared_NM - anchor_N1
    mean_N1 = offsets_NM.mean(-1, keepdim=True)
    squares_N = (offsets_NM - mean_N1).square().sum(-1)
    return (anchor_N1 + mean_N1)[:, 0], (squares_N / max(compared_NM.shape[1] - 1, 1)).sqrt()
