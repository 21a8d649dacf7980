"""From verdicts to what each sample teaches: scaling, shaping, masks, advantages.

Order as in NeMo-RL: rewards are scaled, then shaped, then compared within their group; advantages
are clipped last.

Shape legend: ``_B`` samples of the step.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from nemotron_style.steps.blocks.loss.advantage import (
    clip_advantages,
    group_advantages,
    group_baseline,
)
from nemotron_style.steps.blocks.loss.reward_shaping import (
    scale_reward,
    shape_reward,
)
from nemotron_style.steps.blocks.loss.rollout_metrics import length_metrics, reward_metrics
from nemotron_style.steps.rl.rlhf.config import Config
from nemotron_style.steps.rl.rlhf.rollout import Rollout
from nemotron_style.steps.rl.rlhf.train_sample import Lesson


@dataclass(frozen=True)
class Taught:
    """The lessons of a step in the order of its samples, and what to log about them.

    ``flat`` tells that no group that was judged has a difference in its rewards.
    """

    lessons: list[Lesson]
    metrics: dict[str, float]
    flat: bool


def teach(
    rollouts: Sequence[Rollout], rewards: Sequence[Sequence[float] | None], config: Config
) -> Taught:
    """What the samples of a step teach; ``rewards`` has None for a group that was not judged.

    Samples of such a group, and those with a log-prob missing, take part in nothing. A truncated
    sample takes part in its group's mean even where ``grpo.overlong_filtering`` masks it.
    """
    samples = [sample for rollout in rollouts for sample in rollout.samples]
    groups = [place for place, rollout in enumerate(rollouts) for _ in rollout.samples]
    given = [
        math.nan if own is None else own[number]
        for rollout, own in zip(rollouts, rewards, strict=True)
        for number in range(len(rollout.samples))
    ]
    rewards_B = torch.tensor(
        [
            _shape(reward, config, length=len(sample.tokens), truncated=sample.truncated)
            for reward, sample in zip(given, samples, strict=True)
        ],
        dtype=torch.float64,
    )
    sound = [all(map(math.isfinite, sample.log_probs)) for sample in samples]
    valid_B = rewards_B.isfinite() & torch.tensor(sound)
    baseline = group_baseline(
        rewards_B, groups, valid_B=valid_B, leave_one_out=config.leave_one_out
    )
    advantages_B = clip_advantages(
        group_advantages(rewards_B, baseline, valid_B=valid_B, normalize=config.normalize),
        low=config.grpo.advantage_clip_low,
        high=config.grpo.advantage_clip_high,
    )
    truncated_B = torch.tensor([sample.truncated for sample in samples])
    masked_B = ~valid_B | (truncated_B & config.grpo.overlong_filtering)
    lessons = [
        Lesson(
            group=group,
            prompt_ids=rollouts[group].prompt.ids,
            tokens=sample.tokens,
            generation_T=torch.tensor(sample.log_probs),
            advantage=float(advantages_B[place]) if valid_B[place] else 0.0,
            reward=float(rewards_B[place]) if valid_B[place] else 0.0,
            weight=0.0 if masked_B[place] else 1.0,
        )
        for place, (group, sample) in enumerate(zip(groups, samples, strict=True))
    ]
    metrics = {
        **reward_metrics(rewards_B, baseline, groups, valid_B=valid_B),
        **length_metrics(
            [len(sample.tokens) for sample in samples],
            [len(rollouts[group].prompt.ids) for group in groups],
            [sample.truncated for sample in samples],
        ),
        **_advantage_metrics(lessons),
        "num_mask_sample_filtered": float(masked_B.sum()),
    }
    return Taught(lessons, metrics, flat=metrics.get("hacking/zero_std_groups", 0.0) == 1.0)


def _shape(reward: float, config: Config, *, length: int, truncated: bool) -> float:
    scaled = scale_reward(reward, config.grpo.reward_scaling)
    return shape_reward(scaled, config.grpo.reward_shaping, length=length, truncated=truncated)


def _advantage_metrics(lessons: Sequence[Lesson]) -> dict[str, float]:
    """``advantages/mean``, ``max`` and ``min`` over the tokens that count."""
    kept = [one for one in lessons if one.weight]
    if not kept:
        return {}
    tokens = sum(len(one.tokens) for one in kept)
    return {
        "advantages/mean": math.fsum(one.advantage * len(one.tokens) for one in kept) / tokens,
        "advantages/max": max(one.advantage for one in kept),
        "advantages/min": min(one.advantage for one in kept),
    }
