"""Bouts: both models' answers to a prompt, and what a judge or the truth makes of them; no torch.

A judge is asked in both orders, because most favour a place. What it says counts only as a whole:
a bout in which one order got no verdict has none. Three kinds of bouts need no judge. Equal answers
tie. An answer that the model did not finish loses to one that it did, and two of them tie: that is
what users would get, and truncated text would have the judge guess.

Source: two orders as in MT-Bench (Zheng et al. 2023, arXiv 2306.05685), where a contradiction is a
tie too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Literal

from nemotron_style.steps.blocks.data.toy_truth import Truth
from nemotron_style.steps.blocks.judge.client import JudgeFailure, NamedQuestion
from nemotron_style.steps.blocks.judge.prompt import Message, Question
from nemotron_style.steps.blocks.judge.verdict import Verdict

ORDERS = ("model_first", "baseline_first")
How = Literal["judged", "equal", "unfinished", "failed"]


@dataclass(frozen=True)
class Bout:
    """The ``number``-th answers to prompt ``prompt``; None for one that did not finish."""

    prompt: int
    number: int
    history: tuple[Message, ...]
    model: str | None
    baseline: str | None

    @property
    def question(self) -> str:
        """What the user said last."""
        return self.history[-1]["content"]

    @property
    def known(self) -> tuple[How, float] | None:
        """How it ends without a judge, and the margin of the model; None where one is needed."""
        if self.model is None or self.baseline is None:
            return "unfinished", float((self.baseline is None) - (self.model is None))
        return ("equal", 0.0) if self.model == self.baseline else None

    def ask(self, seed: int) -> list[NamedQuestion]:
        """The questions to a judge, one an order; none where none is needed."""
        if self.known:
            return []
        answers = (self.model or "", self.baseline or "")
        return [
            NamedQuestion(
                ("arena", seed, self.prompt, self.number, order), Question(self.history, *shown)
            )
            for order, shown in zip(ORDERS, (answers, answers[::-1]), strict=True)
        ]


@dataclass(frozen=True)
class Ruling:
    """What came of a bout: the model's margin in each order, above 0 where it is preferred."""

    how: How
    margins: tuple[float, ...]

    @property
    def scores(self) -> tuple[float, ...]:
        """1, 0.5 or 0 of each order."""
        return tuple(as_score(margin) for margin in self.margins)

    @property
    def score(self) -> float:
        """The mean over both orders."""
        return fmean(self.scores)

    @property
    def margin(self) -> float:
        return fmean(self.margins)

    @property
    def is_consistent(self) -> bool:
        """Whether both orders say the same."""
        return len(set(self.scores)) == 1

    @property
    def is_contradictory(self) -> bool:
        """Whether each order prefers another answer."""
        return set(self.scores) == {0.0, 1.0}


def as_score(margin: float) -> float:
    """1 for a win, 0.5 for a tie, 0 for a loss."""
    return 0.5 if margin == 0 else float(margin > 0)


def rule(bout: Bout, found: Sequence[Verdict | JudgeFailure]) -> Ruling:
    """The ruling of a bout from the verdicts of its questions."""
    if bout.known:
        how, margin = bout.known
        return Ruling(how, (margin, margin))
    verdicts = [one for one in found if isinstance(one, Verdict)]
    if len(verdicts) < len(ORDERS):
        return Ruling("failed", ())
    first, second = verdicts
    return Ruling("judged", (first.preference, -second.preference))


def helpfulness(truth: Truth, bout: Bout) -> tuple[int | None, int | None]:
    """How helpful the answers of model and baseline truly are; None for no answer."""
    said = (bout.model, bout.baseline)
    told = [None if text is None else truth.score(bout.question, text) for text in said]
    first, second = (label["helpfulness"] if label else None for label in told)
    return first, second


def true_margin(bout: Bout, levels: tuple[int | None, int | None]) -> float:
    """The model's margin by the truth, with the same rule for answers that did not finish."""
    model, baseline = levels
    if model is None or baseline is None:
        return float((baseline is None) - (model is None))
    return float(model - baseline)
