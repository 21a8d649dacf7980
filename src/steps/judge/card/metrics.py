"""What a judge said about pairs of responses, and the card that is counted from it; no torch.

Every pair is asked in both orders. A pair without a verdict in an order is wrong there: that is
what a training run gets. For the interval of the accuracy both orders of a pair are one cluster,
since they are about the same responses and tend to err together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from nemotron_style.steps.blocks.judge.prompt import split_reasoning
from nemotron_style.steps.blocks.judge.verdict import Verdict, read_verdict
from nemotron_style.steps.blocks.stats.confidence_interval import clustered_interval
from nemotron_style.steps.judge.card.row import Comparison


@dataclass(frozen=True)
class Judgement:
    """An answer of the judge to a question: its text, and the verdict or why there is none."""

    asked: Comparison
    text: str
    verdict: Verdict | None
    problem: str = ""

    @property
    def is_right(self) -> bool:
        """The truly better response is preferred; of equal ones, neither."""
        return self.verdict is not None and _sign(self.verdict.preference) == _sign(self.asked.lead)


Pair = tuple[Judgement, Judgement]
"""The judgements of one comparison as it stands and swapped."""


def read_judgement(asked: Comparison, text: str, *, finished: bool) -> Judgement:
    """The verdict of an answer, read as a training run reads it."""
    if not finished:
        return Judgement(asked, text, None, "it did not end within sampling.max_tokens")
    try:
        return Judgement(asked, text, read_verdict(split_reasoning(text)[1]))
    except ValueError as error:
        return Judgement(asked, text, None, str(error))


def count_card(pairs: Sequence[Pair]) -> dict[str, Any]:
    """The figures of a card.

    ``accuracy`` is over judgements of responses of different worth, and so are
    ``accuracy_as_given`` and ``accuracy_swapped``, one for each order; None where there are none.
    ``swap_agreement`` is the share of pairs with two verdicts in which the same response was
    preferred (or neither, twice), ``first_preference`` the share of verdicts with a preference
    that favour what stood first, ``ties`` the share of verdicts without one.
    """
    told = [pair for pair in pairs if pair[0].asked.lead != 0]
    right = [[one.is_right for one in pair] for pair in told]
    rates = [_share(sum(pair[place] for pair in right), len(told)) for place in (0, 1)]
    every = [judgement for pair in pairs for judgement in pair]
    leads = [_sign(one.verdict.preference) for one in every if one.verdict]
    both = [_agree(pair) for pair in pairs if all(one.verdict for one in pair)]
    even = [one for one in every if one.asked.lead == 0]
    return {
        "accuracy": _share(sum(map(sum, right)), 2 * len(told)),
        "accuracy_interval": list(clustered_interval(right)),
        "accuracy_as_given": rates[0],
        "accuracy_swapped": rates[1],
        "swap_agreement": _share(sum(both), len(both)),
        "parse_rate": _share(len(leads), len(every)),
        "first_preference": _share(leads.count(1), len(leads) - leads.count(0)),
        "ties": _share(leads.count(0), len(leads)),
        "even_pairs_called_even": _share(sum(one.is_right for one in even), len(even)),
        "pairs": len(pairs),
        "pairs_of_different_worth": len(told),
    }


def _agree(pair: Pair) -> bool:
    given, swapped = (one.verdict for one in pair)
    assert given
    assert swapped
    return _sign(given.preference) == -_sign(swapped.preference)


def _share(part: float, whole: int) -> float | None:
    return part / whole if whole else None


def _sign(value: float) -> int:
    return (value > 0) - (value < 0)
