"""Outcomes of single responses, and the rates that are counted from them.

Nothing here knows a model or a file: an outcome says which attribute values were asked for and
which ones the response has.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nemotron_style.steps.blocks.stats.confidence_interval import (
    paired_difference_interval,
    wilson_interval,
)

JOINT = "joint"
"""The name under which the rate of having *all* wanted values stands."""

Attributes = Mapping[str, int]


@dataclass(frozen=True)
class Outcome:
    """One response: ``got`` is None when it did not finish, which misses every attribute."""

    label: str
    wanted: Attributes
    text: str | None
    got: Attributes | None

    def hit(self, name: str) -> bool:
        """Whether attribute ``name`` has the wanted value; for ``joint`` whether all have."""
        if self.got is None:
            return False
        names = self.wanted if name == JOINT else [name]
        return all(self.got.get(one) == self.wanted[one] for one in names)


def read_label(text: str) -> dict[str, int]:
    """``a:3,b:1`` as numbers; a part that does not read so is left out."""
    pairs = [part.rpartition(":") for part in text.split(",")]
    return {name.strip(): int(value) for name, _, value in pairs if value.strip().isdecimal()}


def attribute_names(outcomes: Sequence[Outcome]) -> list[str]:
    """The attributes that are asked for anywhere, in their order of appearance."""
    return list(dict.fromkeys(name for outcome in outcomes for name in outcome.wanted))


def count_rate(hits: Sequence[bool]) -> dict[str, Any]:
    """``{hits, total, rate, low, high}``, the last two being the 95% interval."""
    low, high = wilson_interval(sum(hits), len(hits))
    rate = sum(hits) / len(hits)
    return {"hits": sum(hits), "total": len(hits), "rate": rate, "low": low, "high": high}


def rates(outcomes: Sequence[Outcome]) -> dict[str, dict[str, Any]]:
    """The rate of every attribute over the outcomes that ask for it, and the joint one."""
    found = {JOINT: count_rate([outcome.hit(JOINT) for outcome in outcomes])}
    for name in attribute_names(outcomes):
        asked = [outcome.hit(name) for outcome in outcomes if name in outcome.wanted]
        found[name] = count_rate(asked)
    return found


def rates_by_label(outcomes: Sequence[Outcome]) -> dict[str, dict[str, Any]]:
    """The joint rate of every label, in the order of labels."""
    by_label: dict[str, list[bool]] = {}
    for outcome in outcomes:
        by_label.setdefault(outcome.label, []).append(outcome.hit(JOINT))
    return {label: count_rate(by_label[label]) for label in sorted(by_label)}


def differences(
    baseline: Sequence[Outcome], model: Sequence[Outcome]
) -> dict[str, dict[str, float]]:
    """``{difference, low, high}`` of each rate, model less baseline; both share their order."""
    found = {}
    for name in [JOINT, *attribute_names(model)]:
        pairs = [
            (before.hit(name), after.hit(name))
            for before, after in zip(baseline, model, strict=True)
            if name == JOINT or name in after.wanted
        ]
        before_hits, after_hits = zip(*pairs, strict=True)
        low, high = paired_difference_interval(before_hits, after_hits)
        change = (sum(after_hits) - sum(before_hits)) / len(pairs)
        found[name] = {"difference": change, "low": low, "high": high}
    return found
