"""What is logged about the samples of a step, before any loss.

Sources: NeMo-RL's step and rollout metrics; those under "hacking" are of this project: a policy
that games its judge shows in them first (answers that shrink or grow, groups without a spread).

Shape legend: ``_B`` samples, ``_T`` tokens.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from torch import Tensor

from nemotron_style.steps.blocks.loss.advantage import Baseline


def describe(name: str, values: Sequence[float]) -> dict[str, float]:
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
    """Rewards, baselines at 0 and at 1 and between, and the spread within groups.

    ``hacking/zero_std_groups`` is the share of judged groups in which all rewards are the same:
    they teach nothing, and when a judge answers always the same it is 1.
    """
    usable = valid_B.bool().tolist()
    if not any(usable):
        return {}
    rewards = _kept(rewards_B, usable)
    means = _kept(baseline.mean_B, usable)
    zero = sum(mean == 0 for mean in means) / len(means)
    one = sum(mean == 1 for mean in means) / len(means)
    spreads = _spreads(rewards, [g for g, use in zip(groups, usable, strict=True) if use])
    return {
        "reward": statistics.fmean(rewards),
        **describe("total_reward", rewards),
        "baseline_reward/pct_0": zero,
        "baseline_reward/pct_1": one,
        "baseline_reward/pct_mixed": 1 - zero - one,
        "hacking/reward_std_in_group": statistics.fmean(spreads),
        "hacking/zero_std_groups": sum(spread == 0 for spread in spreads) / len(spreads),
    }


def length_metrics(
    response_lengths: Sequence[int], prompt_lengths: Sequence[int], truncated: Sequence[bool]
) -> dict[str, float]:
    """Tokens of samples, and the share of them that ended by themselves or were cut off."""
    if not response_lengths:
        return {}
    totals = [a + b for a, b in zip(response_lengths, prompt_lengths, strict=True)]
    cut = sum(truncated) / len(truncated)
    return {
        **describe("gen_tokens_per_sample", response_lengths),
        **describe("total_tokens_per_sample", totals),
        "mean_gen_tokens_per_sample": statistics.fmean(response_lengths),
        "mean_prompt_length": statistics.fmean(prompt_lengths),
        "total_num_tokens": sum(totals),
        "natural_termination_rate": 1 - cut,
        "truncation_rate": cut,
    }


def advantage_metrics(advantages_BT: Tensor, mask_BT: Tensor) -> dict[str, float]:
    """``advantages/mean``, ``max`` and ``min`` over the tokens that count."""
    kept = advantages_BT[mask_BT > 0].double()
    if not kept.numel():
        return {}
    return {
        "advantages/mean": kept.mean().item(),
        "advantages/max": kept.max().item(),
        "advantages/min": kept.min().item(),
    }


def _kept(values_B: Tensor, usable: Sequence[bool]) -> list[float]:
    return [value for value, use in zip(values_B.tolist(), usable, strict=True) if use]


def _spreads(rewards: Sequence[float], groups: Sequence[int]) -> list[float]:
    """The population deviation of each group; exactly 0 for equal rewards."""
    members: dict[int, list[float]] = {}
    for reward, group in zip(rewards, groups, strict=True):
        members.setdefault(int(group), []).append(reward)
    return [0.0 if min(each) == max(each) else statistics.pstdev(each) for each in members.values()]
