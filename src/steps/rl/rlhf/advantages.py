"""What a step gives to the loss: shaped rewards, and samples with their advantages and masks.

In the order of NeMo-RL: rewards are scaled, then shaped, then compared within their group, and
advantages are clipped last.

Shape legend: ``_B`` samples of the step.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from nemotron_style.steps.blocks.loss.advantage import Baseline, group_baseline
from nemotron_style.steps.blocks.loss.reward_shaping import (
    scale_reward,
    shape_reward,
)
from nemotron_style.steps.rl.rlhf.grpo_config import Grpo
from nemotron_style.steps.rl.rlhf.rollout import Rollout
from nemotron_style.steps.rl.rlhf.train_sample import TrainSample, to_samples


@dataclass(frozen=True)
class ShapedRewards:
    """Rewards of a step's samples after scaling and shaping, float64 ``[B]``.

    ``groups`` has the index of each sample's prompt. ``valid_B`` is False for a sample that takes
    part in nothing: its group was not judged, one of its log-probs is missing, or one of its ids is
    that of no token. ``mask_B`` is False for one that is not trained on; its reward may still take
    part in its group's baseline.
    """

    rewards_B: Tensor
    groups: list[int]
    valid_B: Tensor
    mask_B: Tensor

    def baseline(self, *, leave_one_out: bool) -> Baseline:
        """Mean and deviation of each sample's group, or of the others in it."""
        return group_baseline(
            self.rewards_B, self.groups, valid_B=self.valid_B, leave_one_out=leave_one_out
        )


def shape_rewards(
    rollouts: Sequence[Rollout], rewards: Sequence[Sequence[float] | None], config: Grpo
) -> ShapedRewards:
    """Scale and shape the rewards of the groups; None stands for a group that was not judged.

    Truncated samples are masked where ``grpo.overlong_filtering`` says so.
    """
    samples = [sample for rollout in rollouts for sample in rollout.samples]
    raw: list[float] = []
    for rollout, judged in zip(rollouts, rewards, strict=True):
        raw += [math.nan] * len(rollout.samples) if judged is None else judged
    shaped = [
        shape_reward(
            scale_reward(reward, config.reward_scaling),
            config.reward_shaping,
            length=len(sample.tokens),
            truncated=sample.truncated,
        )
        for reward, sample in zip(raw, samples, strict=True)
    ]
    rewards_B = torch.tensor(shaped, dtype=torch.float64)
    usable = [sample.known and all(map(math.isfinite, sample.log_probs)) for sample in samples]
    valid_B = rewards_B.isfinite() & torch.tensor(usable)
    truncated_B = torch.tensor([sample.truncated for sample in samples])
    return ShapedRewards(
        rewards_B=rewards_B,
        groups=[index for index, rollout in enumerate(rollouts) for _ in rollout.samples],
        valid_B=valid_B,
        mask_B=valid_B & ~(truncated_B & config.overlong_filtering),
    )


def build_samples(
    rollouts: Sequence[Rollout], shaped: ShapedRewards, advantages_B: Tensor
) -> list[TrainSample]:
    """The samples that the step trains on; one that is not valid has reward and advantage 0."""
    rows = zip(
        to_samples(rollouts),
        shaped.rewards_B.where(shaped.valid_B, 0.0).tolist(),
        advantages_B.where(shaped.valid_B, 0.0).tolist(),
        shaped.mask_B.tolist(),
        strict=True,
    )
    return [
        replace(sample, reward=reward, advantage=advantage, mask=float(mask))
        for sample, reward, advantage, mask in rows
    ]
