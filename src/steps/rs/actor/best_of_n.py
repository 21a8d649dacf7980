"""Best of n: which samples of a group are kept, and what choosing can do at most.

A group is the samples of one prompt, in their order; it is known by its index in the step, so equal
prompts stay apart.

Source of the bounds: best-of-n, as in Beirami et al., "Theoretical guarantees on the best-of-n
alignment policy" (arXiv 2401.01879); for more than one kept sample by the same argument.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from nemotron_style.runtime.errors import StepFailed

PIECES = 400
"""Pieces of the integral of a bound for each sample of a group."""


@dataclass(frozen=True)
class Choice:
    """Indices of the samples that are kept, best first; whether equal scores met at the cut."""

    kept: tuple[int, ...]
    tied: bool


def choose(scores: Sequence[float | None], top_n: int) -> Choice:
    """The ``top_n`` best of a group; of equal scores the earlier. None is never kept.

    Fewer are kept where fewer have a score. Raises StepFailed for a score that is not finite: it
    has no rank.
    """
    usable = [(score, index) for index, score in enumerate(scores) if score is not None]
    if not all(math.isfinite(score) for score, _ in usable):
        raise StepFailed(f"a reward is no finite number: {[score for score, _ in usable]}")
    ranked = sorted(usable, key=lambda pair: (-pair[0], pair[1]))
    kept, left = ranked[:top_n], ranked[top_n:]
    tied = bool(kept and left and kept[-1][0] == left[0][0])
    return Choice(tuple(index for _, index in kept), tied)


def bound_win_rate(n: int, top_n: int) -> float:
    """How often a kept sample beats a fresh one at most: ``1 - (k + 1) / (2 (n + 1))``.

    For one kept sample that is ``n / (n + 1)``; where all are kept, 1/2. Ties make it less.
    """
    return 1 - (top_n + 1) / (2 * (n + 1))


def bound_kl(n: int, top_n: int) -> float:
    """KL in nats from what was sampled to what is kept, at most.

    In terms of the share ``u`` of samples that are worse, what is kept has the density
    ``q(u) = (n / k) P(at most k - 1 of n - 1 others are better)``, and the bound is the integral
    of ``q log q``. For one kept sample it is ``log n - (n - 1) / n``; where all are kept, 0. It is
    reached when no two samples have the same score.
    """
    pieces = PIECES * n
    middles = ((piece + 0.5) / pieces for piece in range(pieces))
    densities = (n / top_n * _at_most(top_n - 1, n - 1, chance=1 - u) for u in middles)
    return math.fsum(q * math.log(q) for q in densities if q > 0) / pieces


def _at_most(most: int, trials: int, *, chance: float) -> float:
    """The probability of ``most`` or fewer hits."""
    terms = (
        math.lgamma(trials + 1)
        - math.lgamma(hits + 1)
        - math.lgamma(trials - hits + 1)
        + hits * math.log(chance)
        + (trials - hits) * math.log1p(-chance)
        for hits in range(min(most, trials) + 1)
    )
    return math.fsum(map(math.exp, terms))
