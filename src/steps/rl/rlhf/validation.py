"""Held-out prompts, answered by the current policy and by the policy at the start of the run.

The answers of the two are sampled independently and shown to the judge in both orders.  Where a
toy's truth is given, it scores them too: the only judge that the policy cannot talk to.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean

from nemotron_style.steps.blocks.data.prompt import Prompt
from nemotron_style.steps.blocks.data.toy_truth import Truth
from nemotron_style.steps.blocks.judge.aggregation import Answer
from nemotron_style.steps.blocks.judge.client import JudgeFailure
from nemotron_style.steps.blocks.judge.group_judge import AnswerGroup, JudgedGroups
from nemotron_style.steps.blocks.judge.pairing import Pair
from nemotron_style.steps.blocks.judge.verdict import Verdict
from nemotron_style.steps.blocks.stats.confidence_interval import clustered_interval
from nemotron_style.steps.blocks.training.sample_table import Row
from nemotron_style.steps.rl.rlhf.config import Config
from nemotron_style.steps.rl.rlhf.pairwise_judge import PairwiseJudge
from nemotron_style.steps.rl.rlhf.rollout import RolloutSampler, mean_tokens
from nemotron_style.steps.rl.rlhf.samples import validation_rows


@dataclass(frozen=True)
class Answers:
    """The answers to the held-out prompts after ``step`` steps, in the order of the prompts."""

    step: int = -1
    answers: list[list[str]] = field(default_factory=list)
    tokens: float = math.nan


@dataclass(frozen=True)
class Validation:
    """Answers the held-out prompts and has the answers compared with those of the start."""

    config: Config
    prompts: Sequence[Prompt]
    sampler: RolloutSampler
    judge: PairwiseJudge
    truth: Truth | None

    def answer(self, step: int, name: str) -> Answers:
        """The policy's answers as it is now; ``name`` names their random numbers."""
        if not self.prompts:
            return Answers()
        rollouts = self.sampler.sample(
            self.prompts,
            range(len(self.prompts)),
            samples=self.config.grpo.val_num_generations_per_prompt,
            name=f"{self.config.seed}/validation/{name}",
        )
        texts = [[sample.answer.text for sample in each.samples] for each in rollouts]
        return Answers(step, texts, mean_tokens(rollouts))

    def run(self, step: int, start: Answers) -> tuple[dict[str, float], list[Row]]:
        """The metrics of the policy after ``step`` steps, and the answers that they are of.

        Raises ``JudgeUnavailable`` when too many judgements fail.
        """
        now = self.answer(step, "now")
        groups = pair_answers(start, now, self.prompts, name=f"{self.config.seed}/validation")
        judged = self.judge.compare(groups, step=step, both_orders=True)
        samples = self.config.grpo.val_num_generations_per_prompt
        metrics = {"validation/tokens": now.tokens, **judge_metrics(judged, samples=samples)}
        if self.truth is not None:
            questions = [prompt.question for prompt in self.prompts]
            metrics |= truth_metrics(self.truth, start, now, questions)
        texts = (start.answers, now.answers)
        return metrics, validation_rows(*texts, self.prompts, judged=judged, truth=self.truth)


def pair_answers(
    start: Answers, now: Answers, prompts: Sequence[Prompt], *, name: str
) -> list[AnswerGroup]:
    """Groups of two answers each: that of the start is first, that of now second."""
    return [
        AnswerGroup(
            f"{name}/{index}/{number}",
            prompt.messages,
            [Answer(old), Answer(new)],
            prompt.principle,
        )
        for index, (prompt, before, after) in enumerate(
            zip(prompts, start.answers, now.answers, strict=True)
        )
        for number, (old, new) in enumerate(zip(before, after, strict=True))
    ]


def judge_metrics(judged: JudgedGroups, *, samples: int) -> dict[str, float]:
    """Mean reward of the answers of now, and their win rate over both orders, ties one half.

    A pair of which a judgement failed is left out.
    """
    rewards = [pair[1] for pair in judged.rewards if pair is not None]
    if not rewards:
        return {}
    wins = [
        _win_share(verdicts) if pair is not None else None
        for pair, verdicts in zip(judged.rewards, judged.verdicts, strict=True)
    ]
    return {
        "validation/total_reward/mean": fmean(rewards),
        **_named_rate("judge_win_rate", wins, samples=samples),
    }


def truth_metrics(
    truth: Truth, start: Answers, now: Answers, questions: Sequence[str]
) -> dict[str, float]:
    """True helpfulness of the answers of now, and how often it is better, ties one half."""
    old, new = (
        [
            truth.score(question, text)["helpfulness"]
            for question, texts in zip(questions, answers.answers, strict=True)
            for text in texts
        ]
        for answers in (start, now)
    )
    wins = [_win(after - before) for before, after in zip(old, new, strict=True)]
    return {
        "validation/truth_before": fmean(old),
        "validation/truth": fmean(new),
        **_named_rate("truth_win_rate", wins, samples=len(now.answers[0])),
    }


def clustered_rate(values: Sequence[float | None], *, samples: int) -> tuple[float, float, float]:
    """Mean and 95% interval; each prompt has ``samples`` values in a row, None is left out.

    The samples of a prompt depend on each other, so they count as one cluster.
    """
    rows = [values[first : first + samples] for first in range(0, len(values), samples)]
    clusters = [[one for one in row if one is not None] for row in rows]
    clusters = [cluster for cluster in clusters if cluster]
    mean = fmean([one for cluster in clusters for one in cluster]) if clusters else math.nan
    return (mean, *clustered_interval(clusters))


def summarise(metrics: Mapping[str, float]) -> dict[str, float]:
    """The metrics of the last validation, under the names that the record has them."""
    return {
        name.removeprefix("validation/").replace("/", "_"): value
        for name, value in metrics.items()
        if name.startswith("validation/")
    }


def _named_rate(name: str, wins: Sequence[float | None], *, samples: int) -> dict[str, float]:
    names = (f"validation/{name}{end}" for end in ("", "_low", "_high"))
    return dict(zip(names, clustered_rate(wins, samples=samples), strict=True))


def _win_share(verdicts: Sequence[tuple[Pair, Verdict | JudgeFailure]]) -> float:
    """How often the second answer of a pair wins; a preference is for what was shown first."""
    return fmean(
        _win(-verdict.preference if pair.first == 0 else verdict.preference)
        for pair, verdict in verdicts
        if isinstance(verdict, Verdict)
    )


def _win(difference: float) -> float:
    return 1.0 if difference > 0 else 0.5 if difference == 0 else 0.0
