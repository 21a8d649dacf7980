"""What is counted of matches and decisions: everything that ``results.json`` holds.

Every rate has a 95% interval over *prompts* (``stats.confidence_interval.clustered_interval``),
because answers to one prompt are not independent. Source: Miller, "Adding error bars to evals"
(2024, arXiv 2411.00640).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from statistics import fmean
from typing import Any, get_args

from nemotron_style.steps.blocks.judge.client import JudgeFailure
from nemotron_style.steps.blocks.stats.confidence_interval import (
    clustered_interval,
    effective_size,
)
from nemotron_style.steps.eval.arena.match import (
    ORDERS,
    SLOTS,
    Decision,
    How,
    Match,
    as_score,
    true_margin,
)

HALF = 0.5

Levels = tuple[int | None, int | None]
Scored = tuple[int, float]
"""A prompt, and the model's score against the baseline: 1, 0.5, 0, or a mean of these."""


def win_rate(
    scored: Iterable[Scored], outcomes: Sequence[str] = ("wins", "ties", "losses")
) -> dict[str, Any]:
    """The mean score with its interval, and how many scores lie above, at and below a half.

    ``effective_pairs`` is how many independent ones they are worth. No rate where there is none.
    """
    by_prompt: dict[int, list[float]] = {}
    for prompt, score in scored:
        by_prompt.setdefault(prompt, []).append(score)
    clusters = list(by_prompt.values())
    scores = [score for cluster in clusters for score in cluster]
    above, below = (sum(map(test, scores)) for test in (HALF.__lt__, HALF.__gt__))
    low, high = clustered_interval(clusters)
    return {
        "rate": _mean(scores),
        "low": low,
        "high": high,
        **dict(zip(outcomes, (above, scores.count(HALF), below), strict=True)),
        "pairs": len(scores),
        "prompts": len(clusters),
        "effective_pairs": effective_size(clusters) if clusters else 0.0,
    }


def conclude(rate: dict[str, Any]) -> str:
    """``better`` or ``worse`` where the interval leaves out a half, else ``open``."""
    if rate["low"] > HALF:
        return "better"
    return "worse" if rate["high"] < HALF else "open"


def count_judge(
    matches: Sequence[Match], decisions: Sequence[Decision], failures: Sequence[JudgeFailure]
) -> dict[str, Any]:
    """The judge's win rate, how far it agrees with itself, and what failed."""
    decided = list(zip(matches, decisions, strict=True))
    judged = [(match, decision) for match, decision in decided if decision.how == "judged"]
    total = win_rate(
        (match.prompt, decision.score) for match, decision in decided if decision.how != "failed"
    )
    return {
        "win_rate": total,
        "conclusion": conclude(total),
        "decided": {how: sum(each.how == how for each in decisions) for how in get_args(How)},
        "by_order": {
            order: _mean(decision.scores[index] for _, decision in judged)
            for index, order in enumerate(ORDERS)
        },
        "order_consistency": _mean(decision.is_consistent for _, decision in judged),
        "contradictions": sum(decision.is_contradictory for _, decision in judged),
        "by_length": _by_length(judged),
        "failures": {
            "judgements": len(failures),
            "kinds": dict(sorted(Counter(each.kinds[-1] for each in failures).items())),
        },
    }


def count_truth(
    matches: Sequence[Match], decisions: Sequence[Decision], levels: Sequence[Levels]
) -> dict[str, Any]:
    """The win rate by the truth over every match, and how often the judge sides with it."""
    margins = [true_margin(each) for each in levels]
    total = win_rate(
        (match.prompt, as_score(margin)) for match, margin in zip(matches, margins, strict=True)
    )
    agreement = [
        (match.prompt, decision.score if margin > 0 else 1 - decision.score)
        for match, decision, margin in zip(matches, decisions, margins, strict=True)
        if decision.how == "judged" and margin != 0
    ]
    return {
        "win_rate": total,
        "conclusion": conclude(total),
        "helpfulness": {
            slot: _mean(each[index] for each in levels) for index, slot in enumerate(SLOTS)
        },
        "judge_agreement": win_rate(agreement, ("right", "undecided", "wrong")),
    }


def count_answers(matches: Sequence[Match]) -> dict[str, Any]:
    """Lengths in characters, and unfinished answers."""
    texts = {slot: [getattr(match, slot) for match in matches] for slot in SLOTS}
    return {
        "prompts": len({match.prompt for match in matches}),
        "pairs": len(matches),
        "lengths": {
            slot: _mean(None if text is None else len(text) for text in answers)
            for slot, answers in texts.items()
        },
        "unfinished": {slot: answers.count(None) for slot, answers in texts.items()},
    }


def _by_length(judged: Sequence[tuple[Match, Decision]]) -> dict[str, Any]:
    """The judge's win rate where the model's answer is the longer one, the shorter, and neither."""
    parts: dict[str, list[Scored]] = {"model_longer": [], "model_shorter": [], "same_length": []}
    for match, decision in judged:
        longer = len(match.model or "") - len(match.baseline or "")
        name = "same_length" if not longer else f"model_{'longer' if longer > 0 else 'shorter'}"
        parts[name].append((match.prompt, decision.score))
    return {name: win_rate(scored) for name, scored in parts.items()}


def _mean(values: Iterable[float | None]) -> float | None:
    """The mean of what is not None; None for nothing."""
    known = [value for value in values if value is not None]
    return fmean(known) if known else None
