"""The judgements themselves: every one as a row, and some of each sort as a table to read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from nemotron_style.steps.blocks.data.markdown_table import markdown_table
from nemotron_style.steps.judge.card.metrics import Judgement, Pair

SORTS = ("unreadable", "wrong", "right")


def sort_of(judgement: Judgement) -> str:
    """``unreadable``, ``wrong`` or ``right``."""
    if judgement.verdict is None:
        return "unreadable"
    return "right" if judgement.is_right else "wrong"


def sample_rows(pairs: Sequence[Pair]) -> list[dict[str, Any]]:
    """One row for each judgement: the question, the answer, the verdict, the truth."""
    return [_row(number, one) for number, pair in enumerate(pairs) for one in pair]


def sample_table(pairs: Sequence[Pair], *, shown: int) -> str:
    """The first ``shown`` judgements of each sort as Markdown tables, the worst sort first."""
    lines = ["# Samples", ""]
    every = [one for pair in pairs for one in pair]
    for sort in SORTS:
        of_sort = [one for one in every if sort_of(one) == sort]
        lines += [f"## {sort} ({len(of_sort)} of {len(every)})", ""]
        if of_sort[:shown]:
            lines += [*markdown_table(_HEADS, map(_cells, of_sort[:shown])), ""]
    return "\n".join(lines)


_HEADS = ["question", "response 1", "response 2", "truth", "judgement"]


def _row(number: int, one: Judgement) -> dict[str, Any]:
    question, verdict = one.comparison.question, one.verdict
    return {
        "pair": number,
        "messages": [dict(message) for message in question.history],
        "response_1": question.response_1,
        "response_2": question.response_2,
        "truth": list(one.comparison.truth),
        "judgement": one.text,
        "verdict": verdict.numbers if verdict else None,
        "problem": one.problem,
        "sort": sort_of(one),
    }


def _cells(one: Judgement) -> list[str]:
    question = one.comparison.question
    truth = " : ".join(f"{score:g}" for score in one.comparison.truth)
    problem = f" ({one.problem})" if one.problem else ""
    texts = [question.history[-1]["content"], question.response_1, question.response_2]
    return [*texts, truth, one.text + problem]
