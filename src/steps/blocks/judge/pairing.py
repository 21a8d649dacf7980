"""Which answers of a group are compared with each other, and in which order.

A judge tends to favour the answer that it reads first, or second. In a circle of three or more
every answer stands once first and once second, so that this cancels. All pairs in one order do not
cancel it (answer 0 always stands first) and need ``both_orders``.

Source: NeMo-Gym's ``genrm_compare`` (strategies ``circular`` and ``all_pairs``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

STRATEGIES = ("circular", "all_pairs")


@dataclass(frozen=True)
class Pair:
    """Answer ``first`` against ``second``; ``judge`` numbers repeated questions about them."""

    first: int
    second: int
    judge: int = 0

    @property
    def swapped(self) -> Pair:
        return Pair(self.second, self.first, self.judge)


def choose_pairs(
    count: int, *, strategy: str = "circular", both_orders: bool = False, judges: int = 1
) -> list[Pair]:
    """The comparisons of ``count`` answers: ``n`` in a circle, ``n (n - 1) / 2`` for all pairs.

    ``both_orders`` adds every pair the other way round that is not there yet (a circle of two
    has both). The whole list is repeated ``judges`` times. Raises ValueError for fewer than two
    answers, no judge or an unknown strategy.
    """
    if count < 2:
        raise ValueError(f"{count} answers cannot be compared")
    if judges < 1:
        raise ValueError(f"{judges} judges")
    if strategy == "circular":
        pairs = [(index, (index + 1) % count) for index in range(count)]
    elif strategy == "all_pairs":
        pairs = list(combinations(range(count), 2))
    else:
        raise ValueError(f"unknown strategy {strategy!r}; allowed: {', '.join(STRATEGIES)}")
    if both_orders:
        pairs += [pair[::-1] for pair in pairs if pair[::-1] not in pairs]
    return [Pair(*pair, judge) for judge in range(judges) for pair in pairs]


@dataclass(frozen=True, kw_only=True)
class ComparisonPlan:
    """What is compared, by NeMo-Gym's names; ``failure_budget`` is a share of a step's judgements.

    With ``use_principle`` a prompt's own principle is sent, or ``default_principle``.
    """

    comparison_strategy: str = "circular"
    both_orders: bool = False
    num_judges_per_comparison: int = 1
    use_principle: bool = False
    default_principle: str | None = None
    failure_budget: float = 0.2

    def __post_init__(self) -> None:
        self.pairs(2)  # refuses a strategy that does not exist
        if not 0 <= self.failure_budget <= 1:
            raise ValueError(f"failure_budget ({self.failure_budget}) must be from 0 to 1")

    def pairs(self, count: int) -> list[Pair]:
        """The comparisons of ``count`` answers."""
        return choose_pairs(
            count,
            strategy=self.comparison_strategy,
            both_orders=self.both_orders,
            judges=self.num_judges_per_comparison,
        )

    def principle(self, own: str | None) -> str | None:
        """The principle to judge a prompt by that has an ``own`` one, or None."""
        return (own or self.default_principle) if self.use_principle else None


def swap_agreement(pairs: Sequence[Pair], preferences: Sequence[float]) -> float | None:
    """The share of pairs seen in both orders in which the same answer was preferred.

    ``preferences`` are positive where the answer that stood first was preferred, 0 for a tie;
    two ties agree. None where no pair was seen in both orders.
    """
    seen = dict(zip(pairs, preferences, strict=True))
    both = [pair for pair in seen if pair.first < pair.second and pair.swapped in seen]
    agree = [sign(seen[pair]) == -sign(seen[pair.swapped]) for pair in both]
    return sum(agree) / len(agree) if agree else None


def sign(value: float) -> int:
    """1, 0 or -1."""
    return (value > 0) - (value < 0)
