"""Matches: both models' answers to a prompt, and who wins by a judge or by the truth; no torch.

A judge sees the answers of a match as two pairs, one in each order, because most judges favour a
position. A match in which one order got no verdict is not decided. Three kinds of matches need no
judge. Equal answers tie. An unfinished answer loses to a finished one, and two of them tie: that is
what users would get, and about a truncated text the judge could only guess.

Source: MT-Bench (Zheng et al. 2023, arXiv 2306.05685), where orders that contradict each other are
a tie too.
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

SLOTS = ("model", "baseline")
ORDERS = ("model_first", "baseline_first")
How = Literal["judged", "equal", "unfinished", "failed"]
Judgement = Verdict | JudgeFailure


@dataclass(frozen=True)
class Match:
    """The ``number``-th answers to prompt ``prompt``; None for an unfinished one."""

    prompt: int
    number: int
    history: tuple[Message, ...]
    model: str | None
    baseline: str | None

    @property
    def outcome_without_judge(self) -> tuple[How, float] | None:
        """How the match ends and the model's margin; None where a judge has to decide."""
        if self.model is None or self.baseline is None:
            return "unfinished", float((self.baseline is None) - (self.model is None))
        return ("equal", 0.0) if self.model == self.baseline else None

    def pairs(self, seed: int) -> list[NamedQuestion]:
        """Both orders as questions to a judge; none where no judge is needed."""
        if self.outcome_without_judge:
            return []
        answers = (self.model or "", self.baseline or "")
        return [
            NamedQuestion(
                # The name seeds the judge's sampling, so it tells matches and orders apart.
                ("arena", seed, self.prompt, self.number, order),
                Question(self.history, *shown),
            )
            for order, shown in zip(ORDERS, (answers, answers[::-1]), strict=True)
        ]


@dataclass(frozen=True)
class Decision:
    """How a match ended, and the model's margin in each order: above 0 where it is preferred."""

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


def decide(match: Match, judgements: Sequence[Judgement]) -> Decision:
    """The decision of a match from the judgements of its pairs."""
    if outcome := match.outcome_without_judge:
        how, margin = outcome
        return Decision(how, (margin, margin))
    verdicts = [each for each in judgements if isinstance(each, Verdict)]
    if len(verdicts) < len(ORDERS):
        return Decision("failed", ())
    model_first, baseline_first = verdicts
    # A verdict prefers what stood first; in the second order that is the baseline.
    return Decision("judged", (model_first.preference, -baseline_first.preference))


def true_helpfulness(truth: Truth, match: Match) -> tuple[int | None, int | None]:
    """How helpful the answers of model and baseline truly are; None for no answer."""
    question = match.history[-1]["content"]
    answers = (match.model, match.baseline)
    model, baseline = (
        None if answer is None else truth.score(question, answer)["helpfulness"]
        for answer in answers
    )
    return model, baseline


def true_margin(levels: tuple[int | None, int | None]) -> float:
    """The model's margin by the truth, with the same rule for unfinished answers."""
    model, baseline = levels
    if model is None or baseline is None:
        return float((baseline is None) - (model is None))
    return float(model - baseline)
