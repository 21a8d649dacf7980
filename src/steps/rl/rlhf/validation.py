"""Held-out prompts, answered by the policy of now and by the one that it started from.

The two answers are drawn independently and laid before the judge in both orders.  Where the data
are a toy's, its truth judges them too: that is the only judge that the policy cannot talk to.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean

from nemotron_style.steps.blocks.data.toy_truth import Truth
from nemotron_style.steps.blocks.judge.aggregation import Answer
from nemotron_style.steps.blocks.judge.group_judge import AnswerGroup, JudgedGroups
from nemotron_style.steps.blocks.judge.verdict import Verdict
from nemotron_style.steps.blocks.stats.confidence_interval import clustered_interval
from nemotron_style.steps.rl.rlhf.prompt import Prompt
from nemotron_style.steps.rl.rlhf.rollout import Rollout, mean_tokens


@dataclass(frozen=True)
class Looked:
    """The answers of one look; a group of answers to each prompt, in the order of prompts."""

    step: int = -1
    answers: list[list[str]] = field(default_factory=list)
    tokens: float = math.nan

    @staticmethod
    def of(step: int, rollouts: Sequence[Rollout]) -> Looked:
        """What was said at ``step``."""
        answers = [[sample.answer.text for sample in each.samples] for each in rollouts]
        return Looked(step, answers, mean_tokens(rollouts))


def pair_up(
    before: Looked, now: Looked, prompts: Sequence[Prompt], *, name: str
) -> list[AnswerGroup]:
    """A contest for each pair of answers: that of the start stands first, that of now second."""
    return [
        AnswerGroup(
            f"{name}/{place}/{number}",
            prompt.messages,
            [Answer(then), Answer(today)],
            prompt.principle,
        )
        for place, (prompt, old, new) in enumerate(
            zip(prompts, before.answers, now.answers, strict=True)
        )
        for number, (then, today) in enumerate(zip(old, new, strict=True))
    ]


def read_judged(judged: JudgedGroups, *, samples: int) -> dict[str, float]:
    """Mean reward of the answers of now, and how often the judge prefers them, both orders alike.

    A pair of which a judgement failed is left out.
    """
    rewards = [own[1] for own in judged.rewards if own is not None]
    wins = [
        fmean(
            _win(-verdict.preference if pair.first == 0 else verdict.preference)
            for pair, verdict in told
            if isinstance(verdict, Verdict)
        )
        if own is not None
        else None
        for own, told in zip(judged.rewards, judged.verdicts, strict=True)
    ]
    if not rewards:
        return {}
    rate, low, high = rate_of(wins, samples=samples)
    return {
        "validation/total_reward/mean": fmean(rewards),
        "validation/judge_win_rate": rate,
        "validation/judge_win_rate_low": low,
        "validation/judge_win_rate_high": high,
    }


def read_truth(
    truth: Truth, before: Looked, now: Looked, questions: Sequence[str]
) -> dict[str, float]:
    """True helpfulness of the answers of now, and how often they are better, ties one half."""
    then, today = (
        [
            truth.score(question, text)["helpfulness"]
            for question, own in zip(questions, one.answers, strict=True)
            for text in own
        ]
        for one in (before, now)
    )
    samples = len(now.answers[0])
    wins = [_win(new - old) for old, new in zip(then, today, strict=True)]
    rate, low, high = rate_of(wins, samples=samples)
    return {
        "validation/truth_before": fmean(then),
        "validation/truth": fmean(today),
        "validation/truth_win_rate": rate,
        "validation/truth_win_rate_low": low,
        "validation/truth_win_rate_high": high,
    }


def rate_of(values: Sequence[float | None], *, samples: int) -> tuple[float, float, float]:
    """Mean and its 95% interval; each prompt has ``samples`` values in a row, None is left out.

    The samples of a prompt depend on each other, so they count as one cluster.
    """
    parts = [values[first : first + samples] for first in range(0, len(values), samples)]
    clusters = [[one for one in part if one is not None] for part in parts]
    clusters = [part for part in clusters if part]
    mean = fmean([one for part in clusters for one in part]) if clusters else math.nan
    return (mean, *clustered_interval(clusters))


def summary(figures: Mapping[str, float]) -> dict[str, float]:
    """The figures of the last look, as they stand in the record."""
    return {
        name.removeprefix("validation/").replace("/", "_"): value
        for name, value in figures.items()
        if name.startswith("validation/")
    }


def _win(gap: float) -> float:
    return 1.0 if gap > 0 else 0.5 if gap == 0 else 0.0
