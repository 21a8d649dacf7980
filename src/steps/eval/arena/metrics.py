"""What is counted of bouts and rulings: pure, and everything that ``results.json`` holds.

Every rate has a 95% interval over *prompts* (``blocks.interval.clustered``): answers to one prompt
are not independent. Source: Miller, "Adding error bars to evals" (2024, arXiv 2411.00640).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from statistics import fmean
from typing import Any

from nemotron_style.steps.blocks.judge.client import JudgeFailure
from nemotron_style.steps.blocks.stats.confidence_interval import (
    clustered_interval,
    effective_size,
)
from nemotron_style.steps.eval.arena.match import ORDERS, Bout, Ruling, as_score, true_margin

HALF = 0.5
OUTCOMES = ("wins", "ties", "losses")

Levels = tuple[int | None, int | None]
Scored = tuple[int, float]
"""A prompt, and the model's score against the baseline: 1, 0.5, 0, or a mean of these."""


def win_rate(scored: Iterable[Scored], outcomes: Sequence[str] = OUTCOMES) -> dict[str, Any]:
    """The mean score with its interval, and how many bouts lie above, at and below a half.

    ``effective_pairs`` is how many independent ones they are worth. No rate where there is none.
    """
    by_prompt: dict[int, list[float]] = {}
    for prompt, score in scored:
        by_prompt.setdefault(prompt, []).append(score)
    clusters = list(by_prompt.values())
    scores = [score for own in clusters for score in own]
    sides = [sum(map(test, scores)) for test in (HALF.__lt__, HALF.__eq__, HALF.__gt__)]
    low, high = clustered_interval(clusters)
    return {
        "rate": fmean(scores) if scores else None,
        "low": low,
        "high": high,
        **dict(zip(outcomes, sides, strict=True)),
        "pairs": len(scores),
        "prompts": len(clusters),
        "effective_pairs": effective_size(clusters) if clusters else 0.0,
    }


def conclude(found: dict[str, Any]) -> str:
    """``better`` or ``worse`` where the interval leaves no half, else ``open``."""
    if found["low"] > HALF:
        return "better"
    return "worse" if found["high"] < HALF else "open"


def count_judge(
    bouts: Sequence[Bout], rulings: Sequence[Ruling], failures: Sequence[JudgeFailure]
) -> dict[str, Any]:
    """The judge's win rate, how far it agrees with itself, and what failed."""
    pairs = list(zip(bouts, rulings, strict=True))
    judged = [(bout, ruling) for bout, ruling in pairs if ruling.how == "judged"]
    ruled = [(bout.prompt, ruling.score) for bout, ruling in pairs if ruling.how != "failed"]
    total = win_rate(ruled)
    return {
        "win_rate": total,
        "conclusion": conclude(total),
        "decided": {
            how: sum(ruling.how == how for ruling in rulings)
            for how in ("judged", "equal", "unfinished", "failed")
        },
        "by_order": {
            name: fmean(ruling.scores[place] for _, ruling in judged) if judged else None
            for place, name in enumerate(ORDERS)
        },
        "order_consistency": _share(ruling.is_consistent for _, ruling in judged),
        "contradictions": sum(ruling.is_contradictory for _, ruling in judged),
        "by_length": _by_length(judged),
        "failures": {
            "judgements": len(failures),
            "kinds": dict(sorted(Counter(one.kinds[-1] for one in failures).items())),
        },
    }


def count_truth(
    bouts: Sequence[Bout], rulings: Sequence[Ruling], levels: Sequence[Levels]
) -> dict[str, Any]:
    """The same by the truth, over every bout, and how often the judge sides with it."""
    margins = [true_margin(bout, own) for bout, own in zip(bouts, levels, strict=True)]
    total = win_rate(
        (bout.prompt, as_score(margin)) for bout, margin in zip(bouts, margins, strict=True)
    )
    sided = [
        (bout.prompt, ruling.score if margin > 0 else 1 - ruling.score)
        for bout, ruling, margin in zip(bouts, rulings, margins, strict=True)
        if ruling.how == "judged" and margin != 0
    ]
    return {
        "win_rate": total,
        "conclusion": conclude(total),
        "helpfulness": {
            slot: _mean(own[place] for own in levels)
            for place, slot in enumerate(("model", "baseline"))
        },
        "judge_agreement": win_rate(sided, ("right", "undecided", "wrong")),
    }


def count_answers(bouts: Sequence[Bout]) -> dict[str, Any]:
    """Lengths in characters, and what did not finish."""
    said = {slot: [getattr(bout, slot) for bout in bouts] for slot in ("model", "baseline")}
    return {
        "prompts": len({bout.prompt for bout in bouts}),
        "pairs": len(bouts),
        "lengths": {
            slot: _mean(None if text is None else len(text) for text in texts)
            for slot, texts in said.items()
        },
        "unfinished": {slot: texts.count(None) for slot, texts in said.items()},
    }


def _by_length(judged: Sequence[tuple[Bout, Ruling]]) -> dict[str, Any]:
    """The judge's win rate where the model's answer is the longer one, the shorter, and neither."""
    names = {1: "model_longer", -1: "model_shorter", 0: "same_length"}
    parts: dict[str, list[Scored]] = {name: [] for name in names.values()}
    for bout, ruling in judged:
        more = len(bout.model or "") - len(bout.baseline or "")
        parts[names[(more > 0) - (more < 0)]].append((bout.prompt, ruling.score))
    return {name: win_rate(scored) for name, scored in parts.items()}


def _share(answers: Iterable[bool]) -> float | None:
    return _mean(map(int, answers))


def _mean(values: Iterable[int | None]) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if known else None
