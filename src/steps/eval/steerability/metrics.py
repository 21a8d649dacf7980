"""Outcomes of single responses, and the rates that are counted from them.

Nothing here knows a model or a file: an outcome says which attribute values were requested and
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
"""The name of the rate of responses with *all* requested values."""

Attributes = Mapping[str, int]


@dataclass(frozen=True)
class Outcome:
    """One response; ``actual`` is None for an unfinished one, which misses every attribute."""

    label: str
    requested: Attributes
    text: str | None
    actual: Attributes | None

    def hit(self, name: str) -> bool:
        """Whether attribute ``name`` has the requested value; for ``joint`` whether all have."""
        if self.actual is None:
            return False
        names = self.requested if name == JOINT else [name]
        return all(self.actual.get(each) == self.requested[each] for each in names)


def parse_label(text: str) -> dict[str, int]:
    """``a:3,b:1`` as numbers; a part that does not read so is left out."""
    pairs = [part.rpartition(":") for part in text.split(",")]
    return {name.strip(): int(value) for name, _, value in pairs if value.strip().isdecimal()}


def attribute_names(outcomes: Sequence[Outcome]) -> list[str]:
    """The attributes that are requested anywhere, in their order of appearance."""
    return list(dict.fromkeys(name for outcome in outcomes for name in outcome.requested))


def hit_rate(hits: Sequence[bool]) -> dict[str, Any]:
    """``{hits, total, rate, low, high}``, the last two being the 95% interval."""
    low, high = wilson_interval(sum(hits), len(hits))
    rate = sum(hits) / len(hits)
    return {"hits": sum(hits), "total": len(hits), "rate": rate, "low": low, "high": high}


def rates_by_attribute(outcomes: Sequence[Outcome]) -> dict[str, dict[str, Any]]:
    """The joint rate, and that of every attribute over the outcomes that request it."""
    rates = {JOINT: hit_rate([outcome.hit(JOINT) for outcome in outcomes])}
    for name in attribute_names(outcomes):
        hits = [outcome.hit(name) for outcome in outcomes if name in outcome.requested]
        rates[name] = hit_rate(hits)
    return rates


def rates_by_label(outcomes: Sequence[Outcome]) -> dict[str, dict[str, Any]]:
    """The joint rate of every label, in the order of labels."""
    by_label: dict[str, list[bool]] = {}
    for outcome in outcomes:
        by_label.setdefault(outcome.label, []).append(outcome.hit(JOINT))
    return {label: hit_rate(by_label[label]) for label in sorted(by_label)}


def rate_differences(
    baseline: Sequence[Outcome], model: Sequence[Outcome]
) -> dict[str, dict[str, float]]:
    """``{difference, low, high}`` of each rate, model less baseline; both share their order."""
    differences = {}
    for name in [JOINT, *attribute_names(model)]:
        pairs = [
            (before.hit(name), after.hit(name))
            for before, after in zip(baseline, model, strict=True)
            if name == JOINT or name in after.requested
        ]
        before_hits, after_hits = zip(*pairs, strict=True)
        low, high = paired_difference_interval(before_hits, after_hits)
        change = (sum(after_hits) - sum(before_hits)) / len(pairs)
        differences[name] = {"difference": change, "low": low, "high": high}
    return differences


def compare_in_words(difference: Mapping[str, float]) -> str:
    """A sentence on ``{difference, low, high}``: better or worse only if the interval is."""
    change, low, high = (100 * difference[name] for name in ("difference", "low", "high"))
    if low > 0:
        what = "better than the baseline"
    elif high < 0:
        what = "worse than the baseline"
    else:
        what = "neither better nor worse than the baseline, as far as can be told"
    figures = f"{change:+.1f} responses of 100 as requested (95%: {low:+.1f} to {high:+.1f})"
    return f"the model is {what}: {figures}"


def count_outcomes(outcomes: Mapping[str, Sequence[Outcome]]) -> dict[str, Any]:
    """Everything of ``results.json`` that is counted, from the outcomes of each slot."""
    results: dict[str, Any] = {
        "responses": len(outcomes["model"]),
        "rates": {slot: rates_by_attribute(own) for slot, own in outcomes.items()},
        "labels": {slot: rates_by_label(own) for slot, own in outcomes.items()},
        "unfinished": {
            slot: sum(outcome.actual is None for outcome in own) for slot, own in outcomes.items()
        },
    }
    if "baseline" in outcomes:
        results["differences"] = rate_differences(outcomes["baseline"], outcomes["model"])
    return results
