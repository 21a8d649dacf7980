"""The figures of a judge's card, counted from its judgements of pairs; no torch.

The judge sees every pair in both orders. Where an order has no verdict, the judge is wrong there,
since a training run would get nothing either. For the interval of the accuracy both orders of a
pair are one cluster: they are about the same responses and tend to err together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from nemotron_style.steps.blocks.judge.pairing import sign
from nemotron_style.steps.blocks.judge.prompt import split_reasoning
from nemotron_style.steps.blocks.judge.verdict import Verdict, read_verdict
from nemotron_style.steps.blocks.stats.confidence_interval import clustered_interval
from nemotron_style.steps.judge.card.row import Comparison


@dataclass(frozen=True)
class Judgement:
    """A judge's answer to a comparison: its text, and the verdict or why there is none."""

    comparison: Comparison
    text: str
    verdict: Verdict | None
    problem: str = ""

    @property
    def is_right(self) -> bool:
        """Whether the truly better response is preferred; of equal ones, neither."""
        verdict, lead = self.verdict, self.comparison.lead
        return verdict is not None and sign(verdict.preference) == sign(lead)


Pair = tuple[Judgement, Judgement]
"""The judgements of one comparison as it stands and swapped."""


def read_judgement(comparison: Comparison, text: str, *, finished: bool) -> Judgement:
    """The judgement in an answer, read as a training run reads it."""
    if not finished:
        return Judgement(comparison, text, None, "it did not end within sampling.max_tokens")
    try:
        return Judgement(comparison, text, read_verdict(split_reasoning(text)[1]))
    except ValueError as error:
        return Judgement(comparison, text, None, str(error))


def count_card(pairs: Sequence[Pair]) -> dict[str, Any]:
    """The figures of a card.

    ``accuracy`` is over judgements of responses of different worth, and so are
    ``accuracy_as_given`` and ``accuracy_swapped``, one for each order; None where there are none.
    ``swap_agreement`` is the share of pairs with two verdicts in which the same response was
    preferred (or neither, twice), ``first_preference`` the share of verdicts with a preference
    that favour what stood first, ``ties`` the share of verdicts without one.
    """
    uneven = [pair for pair in pairs if pair[0].comparison.lead != 0]
    hits = [[judgement.is_right for judgement in pair] for pair in uneven]
    judgements = [judgement for pair in pairs for judgement in pair]
    choices = [sign(each.verdict.preference) for each in judgements if each.verdict]
    # the swapped order turns the sign of a choice that stays with its response
    agreements = [
        sign(given.verdict.preference) == -sign(swapped.verdict.preference)
        for given, swapped in pairs
        if given.verdict and swapped.verdict
    ]
    even = [each for each in judgements if each.comparison.lead == 0]
    return {
        "accuracy": _share(sum(map(sum, hits)), 2 * len(uneven)),
        "accuracy_interval": list(clustered_interval(hits)),
        "accuracy_as_given": _share(sum(given for given, _ in hits), len(uneven)),
        "accuracy_swapped": _share(sum(swapped for _, swapped in hits), len(uneven)),
        "swap_agreement": _share(sum(agreements), len(agreements)),
        "parse_rate": _share(len(choices), len(judgements)),
        "first_preference": _share(choices.count(1), len(choices) - choices.count(0)),
        "ties": _share(choices.count(0), len(choices)),
        "even_pairs_called_even": _share(sum(each.is_right for each in even), len(even)),
        "pairs": len(pairs),
        "pairs_of_different_worth": len(uneven),
    }


def _share(part: float, whole: int) -> float | None:
    return part / whole if whole else None
