"""Held-out prompts: rewards of the policy's responses before and after training, and the gain."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import fmean

from nemotron_style.steps.blocks.data.prompt import Prompt
from nemotron_style.steps.blocks.data.toy_truth import ATTRIBUTES, Truth
from nemotron_style.steps.blocks.stats.confidence_interval import t_quantile
from nemotron_style.steps.rs.actor.config import Config
from nemotron_style.steps.rs.actor.metrics import mean
from nemotron_style.steps.rs.actor.rollout import Rollout, RolloutSampler, seed_prompts


@dataclass(frozen=True)
class ValidationResult:
    """Rewards of responses to held-out prompts after ``step`` steps.

    ``rewards`` and the values of ``truth`` have one number for each sample (None without one), and
    ``texts`` what it said; states of earlier versions have none. Sample i answers prompt
    ``i % prompts``, with the same random numbers at every validation.
    """

    step: int = -1
    prompts: int = 0
    rewards: list[float | None] = field(default_factory=list)
    truth: dict[str, list[float]] = field(default_factory=dict)
    tokens: float = math.nan
    finished: float = math.nan
    texts: list[str | None] = field(default_factory=list)

    @property
    def reward(self) -> float:
        """The mean reward."""
        return mean([one for one in self.rewards if one is not None])

    def metrics(self, start: ValidationResult) -> dict[str, float]:
        """Its metrics; ``start`` is the result before the first step."""
        truth = {f"validation_truth_{name}_mean": mean(x) for name, x in self.truth.items()}
        return truth | {
            "validation_reward_mean": self.reward,
            "validation_response_tokens_mean": self.tokens,
            "validation_finished_share": self.finished,
            "validation_unusable_samples": float(self.rewards.count(None)),
            "validation_better_share": better_share(start.rewards, self.rewards),
        }


@dataclass(frozen=True)
class Validation:
    """Samples responses to the held-out prompts, and has them scored."""

    config: Config
    prompts: Sequence[Prompt]
    sampler: RolloutSampler
    truth: Truth | None

    def run(self, step: int) -> ValidationResult:
        """The result of the policy after ``step`` steps."""
        rs, available = self.config.model.rs, len(self.prompts)
        count = rs.num_val_samples or rs.num_rollout_samples
        indices = [number % available for number in range(count)]
        seeded = seed_prompts(self.prompts, indices, self.config.seed, "validation")
        lot = rs.val_rollout_micro_batch_size or rs.rollout_micro_batch_size
        rollouts = self.sampler.collect_scores(
            seeded, self.sampler.sample(seeded, samples=1, lot=lot)
        )
        responses = [rollout.responses[0] for rollout in rollouts]
        return ValidationResult(
            step=step,
            prompts=min(available, count),
            rewards=[rollout.rewards[0] for rollout in rollouts],
            truth=self._score(rollouts),
            tokens=mean([len(one.tokens) for one in responses]),
            finished=mean([one.finished for one in responses]),
            texts=[one.text for one in responses],
        )

    def _score(self, rollouts: Sequence[Rollout]) -> dict[str, list[float]]:
        if self.truth is None:
            return {}
        scores = [
            self.truth.score(rollout.prompt.question, rollout.responses[0].text or "")
            for rollout in rollouts
        ]
        return {name: [float(one[name]) for one in scores] for name in ATTRIBUTES}


def better_share(before: Sequence[float | None], after: Sequence[float | None]) -> float:
    """How often a sample is worth more than the one before, with the same random numbers; equal
    ones count half. It is compared with no bound: those are for independent samples.
    """
    pairs = [(x, y) for x, y in zip(before, after, strict=True) if None not in (x, y)]
    return mean([(y > x) + 0.5 * (y == x) for x, y in pairs])  # type: ignore[operator]


def paired_gain(
    before: Sequence[float | None], after: Sequence[float | None], *, prompts: int
) -> tuple[float, float, float]:
    """Mean of ``after - before`` and its 95% interval (Student's t) over prompts.

    The samples of a prompt are not independent of each other, so its mean counts as one number.
    Where all of these are equal, nothing tells how gains vary: the interval is unbounded.
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
    known = count > 1 and spread > 0
    margin = t_quantile(count - 1) * spread / math.sqrt(count) if known else math.inf
    return gain, gain - margin, gain + margin


def summarise_gain(before: ValidationResult, after: ValidationResult) -> dict[str, float]:
    """Before, after, and the gain with its interval, of the reward and of every true attribute."""
    series = {"reward": (before.rewards, after.rewards)} | {
        f"truth_{name}": (before.truth[name], after.truth[name]) for name in after.truth
    }
    summary: dict[str, float] = {}
    for name, (old, new) in series.items():
        gain, low, high = paired_gain(old, new, prompts=after.prompts)
        summary |= {
            f"{name}_before": mean([x for x in old if x is not None]),
            f"{name}_after": mean([x for x in new if x is not None]),
            f"{name}_gain": gain,
            f"{name}_gain_low": low,
            f"{name}_gain_high": high,
        }
    return summary
