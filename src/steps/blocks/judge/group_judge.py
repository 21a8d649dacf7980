"""Rewards for a step's groups of answers, from a judge that compares them in pairs; no torch.

A group with a single failed comparison has no rewards at all: its answers would be compared on
unequal terms, or with a number that nobody gave. Such groups are masked, counted and named; above
a budget of failures the run stops.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import floor
from statistics import fmean

from nemotron_style.steps.blocks.judge.aggregation import (
    Aggregation,
    Answer,
    aggregate,
    verdict_metrics,
)
from nemotron_style.steps.blocks.judge.client import JudgeClient, JudgeFailure, NamedQuestion
from nemotron_style.steps.blocks.judge.pairing import (
    ComparisonPlan,
    Pair,
    swap_agreement,
)
from nemotron_style.steps.blocks.judge.prompt import Message, Question
from nemotron_style.steps.blocks.judge.verdict import Verdict

ROUNDING = 1e-9
"""Else a budget of 0.29 would allow 28 failures of 100: ``0.29 * 100`` is 28.999..."""

UNREADABLE = ("unparseable", "empty", "unfinished")
"""Faults of answers that came whole and held no verdict."""

OUTCOMES = ("verdicts", "cached", "given_up")
"""How a judgement ends: each in one of these."""

LOGGED = "judge/"

Judgement = tuple[Pair, Verdict | JudgeFailure]


@dataclass(frozen=True)
class AnswerGroup:
    """A prompt and the policy's answers to it; ``prompt`` is its name, unique within a step."""

    prompt: str
    history: tuple[Message, ...]
    answers: Sequence[Answer]
    principle: str | None = None


@dataclass(frozen=True)
class JudgedGroups:
    """Rewards of each group, None for one to be masked; what failed; and what to log.

    ``verdicts`` holds each group's comparisons, and what the judge said of them.
    """

    rewards: Sequence[Sequence[float] | None]
    failures: Sequence[JudgeFailure]
    metrics: Mapping[str, float]
    verdicts: Sequence[Sequence[Judgement]] = ()


def judge_groups(
    client: JudgeClient,
    groups: Sequence[AnswerGroup],
    *,
    step: int,
    plan: ComparisonPlan,
    aggregation: Aggregation,
) -> JudgedGroups:
    """The rewards of a step's groups.

    A group of fewer than two answers cannot be judged and is masked. Raises ``JudgeUnavailable``
    when more judgements fail than the plan's budget allows.
    """
    counts_before = client.counts
    pairs = [plan.pairs(len(group.answers)) if len(group.answers) > 1 else [] for group in groups]
    questions = [
        name_question(group, pair, step=step, principle=plan.principle(group.principle))
        for group, own in zip(groups, pairs, strict=True)
        for pair in own
    ]
    # one list for all groups: the judge is kept busy, and the budget is that of the step
    most_failures = floor(plan.failure_budget * len(questions) + ROUNDING)
    answers = iter(client.judge(questions, most_failures=most_failures))
    verdicts = [[(pair, next(answers)) for pair in own] for own in pairs]
    judgements = [verdict for own in verdicts for _, verdict in own]
    failures = [each for each in judgements if isinstance(each, JudgeFailure)]
    rewards = [
        _group_rewards(group, own, aggregation) for group, own in zip(groups, verdicts, strict=True)
    ]
    counts = {name: value - counts_before.get(name, 0) for name, value in client.counts.items()}
    metrics = {
        **verdict_metrics([each for each in judgements if isinstance(each, Verdict)]),
        **_failure_rates(counts, len(questions), len(failures)),
        **{name: float(value) for name, value in counts.items() if value},
        **_mean_agreement(verdicts),
        "masked_groups": sum(each is None for each in rewards),
    }
    logged = {f"{LOGGED}{name}": value for name, value in metrics.items()}
    return JudgedGroups(rewards, failures, logged, verdicts)


def name_question(
    group: AnswerGroup, pair: Pair, *, step: int, principle: str | None
) -> NamedQuestion:
    """The question about a pair, under the name ``step/prompt/first/second/judge``."""
    first, second = (group.answers[index].text for index in (pair.first, pair.second))
    name = (step, group.prompt, pair.first, pair.second, pair.judge)
    return NamedQuestion(name, Question(tuple(group.history), first, second, principle))


def _group_rewards(
    group: AnswerGroup, judgements: Sequence[Judgement], aggregation: Aggregation
) -> Sequence[float] | None:
    """None for a group without pairs, or with one that has no verdict."""
    pairs, verdicts = _with_verdict(judgements)
    if not pairs or len(pairs) < len(judgements):
        return None
    return aggregate(group.answers, pairs, verdicts, aggregation).rewards


def _with_verdict(judgements: Sequence[Judgement]) -> tuple[list[Pair], list[Verdict]]:
    """The pairs that have a verdict, and their verdicts."""
    judged = [(pair, each) for pair, each in judgements if isinstance(each, Verdict)]
    return [pair for pair, _ in judged], [verdict for _, verdict in judged]


def sum_failures(lines: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """``parse_failure_rate`` and ``failed_share`` of a whole run, from what its steps logged.

    A verdict that the cache had after a restart is a judgement, and no new answer of the judge.
    """
    counts: Counter[str] = Counter()
    for line in lines:
        counts.update({k.removeprefix(LOGGED): v for k, v in line.items() if k.startswith(LOGGED)})
    return _failure_rates(counts, sum(counts[name] for name in OUTCOMES), counts["given_up"])


def _failure_rates(
    counts: Mapping[str, float], questions: float, failures: float
) -> dict[str, float]:
    """The shares of answers that held no verdict, and of questions that got none."""
    answers = counts.get("answers", 0)
    unreadable = sum(counts.get(f"failed_{kind}", 0) for kind in UNREADABLE)
    rates = {"parse_failure_rate": unreadable / answers} if answers else {}
    return rates | ({"failed_share": failures / questions} if questions else {})


def _mean_agreement(groups: Sequence[Sequence[Judgement]]) -> dict[str, float]:
    """How often the judge keeps to its choice when the order is swapped, where both were asked."""
    shares = []
    for judgements in groups:
        pairs, verdicts = _with_verdict(judgements)
        shares.append(swap_agreement(pairs, [verdict.preference for verdict in verdicts]))
    known = [share for share in shares if share is not None]
    return {"swap_agreement": fmean(known)} if known else {}
