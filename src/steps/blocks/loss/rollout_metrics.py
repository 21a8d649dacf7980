"""Metrics of a step's samples, before any loss.

Sources: NeMo-RL's step and rollout metrics. Those under "hacking" are of this project: a policy
that games its judge shows in them first (answers that shrink or grow, groups without a spread).

Shape legend: ``_B`` samples.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from torch import Tensor

from nemotron_style.steps.blocks.loss.advantage import Baseline


def distribution_metrics(name: str, values: Sequence[float]) -> dict[str, float]:
    """``name/mean``, ``max``, ``min``, ``median`` and ``stddev`` (of a sample; 0 for one value).

    Nothing for no values: a metric that has no value is not 0.
    """
    if not values:
        return {}
    return {
        f"{name}/mean": statistics.fmean(values),
        f"{name}/max": max(values),
        f"{name}/min": min(values),
        f"{name}/median": statistics.median(values),
        f"{name}/stddev": statistics.stdev(values) if len(values) > 1 else 0.0,
    }


def reward_metrics(
    rewards_B: Tensor, baseline: Baseline, groups: Sequence[int], *, valid_B: Tensor
) -> dict[str, float]:
    """Rewards, the shares of baselines at 0, at 1 and between, and the spread within groups.

    ``hacking/zero_std_groups`` is the share of judged groups in which all rewards are the same:
    nothing is learnt from them, and when a judge answers always the same it is 1.
    """
    valid = [index for index, usable in enumerate(valid_B.tolist()) if usable]
    if not valid:
        return {}
    rewards, means = rewards_B[valid].tolist(), baseline.mean_B[valid].tolist()
    zero, one = means.count(0.0) / len(means), means.count(1.0) / len(means)
    members: dict[int, list[float]] = {}
    for index, reward in zip(valid, rewards, strict=True):
        members.setdefault(int(groups[index]), []).append(reward)
    stds = [statistics.pstdev(group) for group in members.values()]
    return {
        "reward": statistics.fmean(rewards),
        **distribution_metrics("total_reward", rewards),
        "baseline_reward/pct_0": zero,
        "baseline_reward/pct_1": one,
        "baseline_reward/pct_mixed": 1 - zero - one,
        "hacking/reward_std_in_group": statistics.fmean(stds),
        "hacking/zero_std_groups": stds.count(0.0) / len(stds),
    }


def length_metrics(
    response_lengths: Sequence[int], prompt_lengths: Sequence[int], truncated: Sequence[bool]
) -> dict[str, float]:
    """Tokens of samples, and the shares that ended by themselves and that were cut off."""
    if not response_lengths:
        return {}
    totals = [a + b for a, b in zip(response_lengths, prompt_lengths, strict=True)]
    cut = sum(truncated) / len(truncated)
    return {
        **distribution_metrics("gen_tokens_per_sample", response_lengths),
        **distribution_metrics("total_tokens_per_sample", totals),
        "mean_gen_tokens_per_sample": statistics.fmean(response_lengths),
        "mean_prompt_length": statistics.fmean(prompt_lengths),
        "total_num_tokens": sum(totals),
        "natural_termination_rate": 1 - cut,
        "truncation_rate": cut,
    }
