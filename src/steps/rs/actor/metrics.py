"""The numbers of a step, and of the held-out prompts before and after."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean, pstdev
from typing import Any

from nemotron_style.steps.blocks.data.toy_truth import ATTRIBUTES, Truth
from nemotron_style.steps.rs.actor.best_of_n import Choice
from nemotron_style.steps.rs.actor.rollout import Rollout

Z = 1.959963984540054
"""The quantile of the normal distribution that leaves 2.5% above it."""


def describe_rollouts(rollouts: Sequence[Rollout], choices: Sequence[Choice]) -> dict[str, float]:
    """Rewards of all and of kept, lengths, and what could not be scored or was tied."""
    responses = [one for rollout in rollouts for one in rollout.responses]
    rewards = [score for rollout in rollouts for score in rollout.rewards if score is not None]
    kept = [
        (rollout.rewards[place] or 0.0, len(rollout.responses[place].tokens))
        for rollout, choice in zip(rollouts, choices, strict=True)
        for place in choice.kept
    ]
    return {
        "reward_mean": _mean(rewards),
        "reward_std": pstdev(rewards) if rewards else math.nan,
        "reward_min": min(rewards, default=math.nan),
        "reward_max": max(rewards, default=math.nan),
        "reward_kept_mean": _mean([reward for reward, _ in kept]),
        "response_tokens_mean": _mean([len(one.tokens) for one in responses]),
        "kept_tokens_mean": _mean([tokens for _, tokens in kept]),
        "finished_share": _mean([one.finished for one in responses]),
        "unusable_samples": sum(one.text is None for one in responses),
        "tied_groups": sum(choice.tied for choice in choices),
        **{f"attribute_{name}_mean": value for name, value in _attributes(rollouts).items()},
    }


@dataclass(frozen=True)
class Heldout:
    """What the policy is worth on prompts that it is not trained on, after ``step`` steps.

    ``rewards`` and the values of ``truth`` have one number for each sample (None without one);
    sample i answers prompt ``i % prompts``, always with the same random numbers.
    """

    step: int = -1
    prompts: int = 0
    rewards: list[float | None] = field(default_factory=list)
    truth: dict[str, list[float]] = field(default_factory=dict)
    tokens: float = math.nan
    finished: float = math.nan

    @staticmethod
    def of(step: int, prompts: int, rollouts: Sequence[Rollout], truth: Truth | None) -> Heldout:
        """The figures of one sample for each rollout, judged by the truth where there is one."""
        responses = [rollout.responses[0] for rollout in rollouts]
        found = [
            truth.score(rollout.prompt.question, rollout.responses[0].text or "")
            for rollout in rollouts
            if truth is not None
        ]
        return Heldout(
            step=step,
            prompts=prompts,
            rewards=[rollout.rewards[0] for rollout in rollouts],
            truth={name: [float(one[name]) for one in found] for name in ATTRIBUTES if found},
            tokens=_mean([len(one.tokens) for one in responses]),
            finished=_mean([one.finished for one in responses]),
        )

    def named(self, before: Heldout) -> dict[str, float]:
        """As metrics; ``before`` is the look before the first step."""
        told = {
            "validation_reward_mean": self.reward,
            "validation_response_tokens_mean": self.tokens,
            "validation_finished_share": self.finished,
            "validation_unusable_samples": float(self.rewards.count(None)),
            "validation_better_share": better_share(before.rewards, self.rewards),
        }
        return told | {f"validation_truth_{name}_mean": _mean(x) for name, x in self.truth.items()}

    @property
    def reward(self) -> float:
        """The mean reward."""
        return _mean([one for one in self.rewards if one is not None])


def better_share(before: Sequence[float | None], after: Sequence[float | None]) -> float:
    """How often a sample is worth more than the one before, with the same random numbers; equal
    ones count half. It is compared with no bound: those are for independent samples.
    """
    pairs = [(x, y) for x, y in zip(before, after, strict=True) if None not in (x, y)]
    return _mean([(y > x) + 0.5 * (y == x) for x, y in pairs])  # type: ignore[operator]


def paired_gain(
    before: Sequence[float | None], after: Sequence[float | None], *, prompts: int
) -> tuple[float, float, float]:
    """Mean of ``after - before`` and its 95% interval, over prompts: the samples of a prompt are
    not independent of each other, so its mean counts as one number (normal approximation).
    """
    by_prompt: dict[int, list[float]] = {}
    for number, (x, y) in enumerate(zip(before, after, strict=True)):
        if x is not None and y is not None:
            by_prompt.setdefault(number % prompts, []).append(y - x)
    means = [fmean(gaps) for gaps in by_prompt.values()]
    if not means:
        return math.nan, math.nan, math.nan
    gain, count = fmean(means), len(means)
    spread = math.sqrt(math.fsum((x - gain) ** 2 for x in means) / max(1, count - 1))
    margin = Z * spread / math.sqrt(count) if count > 1 else math.inf
    return gain, gain - margin, gain + margin


def summarise_gain(before: Heldout, after: Heldout) -> dict[str, float]:
    """Before, after, and the gain with its interval, of the reward and of every true attribute."""
    series = {"reward": (before.rewards, after.rewards)} | {
        f"truth_{name}": (before.truth[name], after.truth[name]) for name in after.truth
    }
    told: dict[str, float] = {}
    for name, (old, new) in series.items():
        gain, low, high = paired_gain(old, new, prompts=after.prompts)
        told |= {
            f"{name}_before": _mean([x for x in old if x is not None]),
            f"{name}_after": _mean([x for x in new if x is not None]),
            f"{name}_gain": gain,
            f"{name}_gain_low": low,
            f"{name}_gain_high": high,
        }
    return told


def difference(before: Mapping[str, int], after: Mapping[str, int]) -> dict[str, int]:
    """What was counted between two looks at a client's counts, under the names of metrics."""
    return {f"rm_{name}": number - before.get(name, 0) for name, number in after.items()}


def _attributes(rollouts: Sequence[Rollout]) -> dict[str, float]:
    scores = [one for rollout in rollouts for one in rollout.scores if one]
    names = scores[0].attributes if scores else ()
    return {name: _mean([one.attributes[name] for one in scores]) for name in names}


def _mean(values: Sequence[Any]) -> float:
    return fmean(values) if values else math.nan
