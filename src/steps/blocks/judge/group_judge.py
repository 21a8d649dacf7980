"""A step's groups of answers, judged: pairs out, rewards back, failures masked; no torch.

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
"""0.29 of 100 judgements are 29, not 28."""

UNREADABLE = ("unparseable", "empty", "unfinished")
"""Faults of answers that came whole and held no verdict."""

OUTCOMES = ("verdicts", "cached", "given_up")
"""How a judgement ends: each in one of these."""

LOGGED = "judge/"


@dataclass(frozen=True)
class AnswerGroup:
    """A prompt and what the policy answered to it; ``prompt`` names it, in one step only once."""

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
    verdicts: Sequence[Sequence[tuple[Pair, Verdict | JudgeFailure]]] = ()


def judge_groups(
    client: JudgeClient,
    contests: Sequence[AnswerGroup],
    *,
    step: int,
    plan: ComparisonPlan,
    aggregation: Aggregation,
) -> JudgedGroups:
    """The rewards of a step's groups.

    A group of fewer than two answers cannot be judged and is masked. Raises ``JudgeUnavailable``
    when more judgements fail than the plan's budget allows.
    """
    before = client.counts
    pairs = [plan.pairs(len(one.answers)) if len(one.answers) > 1 else [] for one in contests]
    asked = [
        name_question(contest, pair, step=step, principle=plan.principle(contest.principle))
        for contest, chosen in zip(contests, pairs, strict=True)
        for pair in chosen
    ]
    most = floor(plan.failure_budget * len(asked) + ROUNDING)
    found = iter(client.judge(asked, most_failures=most))
    results = [[next(found) for _ in chosen] for chosen in pairs]
    rewards = [
        _group_rewards(contest, chosen, outcome, aggregation)
        for contest, chosen, outcome in zip(contests, pairs, results, strict=True)
    ]
    failures = [one for group in results for one in group if isinstance(one, JudgeFailure)]
    metrics = {
        **verdict_metrics([one for group in results for one in group if isinstance(one, Verdict)]),
        **_failure_metrics(before, client.counts, len(asked), len(failures)),
        **_agreement(pairs, results),
        "masked_groups": sum(each is None for each in rewards),
    }
    named = {f"{LOGGED}{name}": value for name, value in metrics.items()}
    told = [list(zip(*each, strict=True)) for each in zip(pairs, results, strict=True)]
    return JudgedGroups(rewards, failures, named, told)


def name_question(
    contest: AnswerGroup, pair: Pair, *, step: int, principle: str | None
) -> NamedQuestion:
    """The question about a pair, under the name ``step/prompt/first/second/judge``."""
    first, second = (contest.answers[index].text for index in (pair.first, pair.second))
    name = (step, contest.prompt, pair.first, pair.second, pair.judge)
    return NamedQuestion(name, Question(tuple(contest.history), first, second, principle))


def _group_rewards(
    contest: AnswerGroup,
    pairs: Sequence[Pair],
    outcome: Sequence[Verdict | JudgeFailure],
    aggregation: Aggregation,
) -> Sequence[float] | None:
    verdicts = [one for one in outcome if isinstance(one, Verdict)]
    if not pairs or len(verdicts) < len(pairs):
        return None
    return aggregate(contest.answers, pairs, verdicts, aggregation).rewards


def _failure_metrics(
    before: Mapping[str, int], after: Mapping[str, int], asked: int, failed: int
) -> dict[str, float]:
    """Failures of judgements, and the share of the judge's answers that held no verdict."""
    made = {name: after[name] - before.get(name, 0) for name in after}
    rates = _rates(made, asked, failed)
    return {**rates, **{name: float(value) for name, value in made.items() if value}}


def sum_failures(lines: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """``parse_failure_rate`` and ``failed_share`` of a whole run, from what its steps logged.

    A verdict that was found again after a kill is a judgement, and no new answer of the judge.
    """
    made: Counter[str] = Counter()
    for line in lines:
        made.update({k.removeprefix(LOGGED): v for k, v in line.items() if k.startswith(LOGGED)})
    return _rates(made, sum(made[name] for name in OUTCOMES), made["given_up"])


def _rates(made: Mapping[str, float], asked: float, failed: float) -> dict[str, float]:
    answers = made.get("answers", 0)
    unreadable = sum(made.get(f"failed_{kind}", 0) for kind in UNREADABLE)
    rates = {"parse_failure_rate": unreadable / answers} if answers else {}
    return rates | ({"failed_share": failed / asked} if asked else {})


def _agreement(
    pairs: Sequence[Sequence[Pair]], results: Sequence[Sequence[Verdict | JudgeFailure]]
) -> dict[str, float]:
    """How often the judge keeps to its choice when the order is swapped, where both were asked."""
    shares = []
    for chosen, outcome in zip(pairs, results, strict=True):
        told = [
            (p, one.preference)
            for p, one in zip(chosen, outcome, strict=True)
            if isinstance(one, Verdict)
        ]
        share = swap_agreement([p for p, _ in told], [value for _, value in told])
        shares += [] if share is None else [share]
    return {"swap_agreement": fmean(shares)} if shares else {}
