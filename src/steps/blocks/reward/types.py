"""What a reward model answers, as the service that asks it and the client that reads it see it.

Nothing here imports torch: a client knows the words of a conversation, never its tokens.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nemotron_style.steps.blocks.http.error import shorten

ROLES = ("system", "user", "assistant")
LARGEST = 1e30

Message = Mapping[str, str]
"""``{"role": ..., "content": ...}``."""


@dataclass(frozen=True)
class RewardScore:
    """The score of one conversation, and the attribute scores that it was made of."""

    score: float
    attributes: Mapping[str, float]


def as_number(value: Any) -> float:
    """A number as it stands, or ``ValueError``: text, booleans, NaN and infinities are none."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"not a number: {shorten(value)}")
    if not -LARGEST < value < LARGEST:  # false for NaN, and integers of any length
        raise ValueError(f"not a finite number: {shorten(value)}")
    return float(value)


def check_score(score: Any, attributes: Any, outputs: Sequence[str]) -> RewardScore:
    """A checked result. Raises ``ValueError`` for what is no score of a model with ``outputs``."""
    if not isinstance(attributes, Mapping) or set(attributes) != set(outputs):
        wanted = ", ".join(outputs)
        raise ValueError(f"attributes must be {wanted}, not {shorten(attributes)}")
    numbers = {name: as_number(attributes[name]) for name in outputs}
    number = as_number(score)
    assert math.isfinite(number)
    return RewardScore(number, numbers)
