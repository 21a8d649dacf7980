"""How much better something is than what it came from, as evaluations and its own run measured it.

A finding holds a value, its 95% interval, and the reference that both are held to: a half for a
rate of wins, zero for a difference. It is called better or worse only where the whole interval
lies on one side, and only of a measure of which more is known to be better.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from nemotron_style.runtime.errors import ArtifactError, Problem
from nemotron_style.runtime.report.evidence import read_file
from nemotron_style.runtime.store.lineage.graph import walk
from nemotron_style.runtime.store.record import Artifact, Record
from nemotron_style.runtime.store.store import Store
from nemotron_style.runtime.store.tombstone import Tombstone
from nemotron_style.runtime.units import format_number

EVALUATION = "eval_results"
BETTER, WORSE, OPEN, MIXED, MEASURED = "better", "worse", "open", "mixed", "measured"
MORE_IS_BETTER = ("reward", "helpfulness", "correctness", "coherence")
"""Gains that say better or worse; of others, such as verbosity, nobody can say which is good."""
WIN_RATES = {
    "judge win rate": "preferred by the judge",
    "truth win rate": "better by the truth",
}


@dataclass(frozen=True)
class Finding:
    """One measured value; ``reference`` is None where it is compared with nothing.

    ``against`` is the ref of what it was compared with, ``source`` what measured it: the ref of an
    evaluation, or "" for the run that made it. ``detail`` says the same in the measure's words.
    ``is_share`` is False for what is no share of a whole, such as a reward; ``decides`` for what is
    compared and yet says neither better nor worse.
    """

    measure: str
    value: float
    low: float
    high: float
    reference: float | None
    against: str
    source: str
    detail: str = ""
    is_share: bool = True
    decides: bool = True

    @property
    def conclusion(self) -> str:
        """``better``, ``worse``, ``open``, or ``measured`` where it decides nothing."""
        if self.reference is None or not self.decides:
            return MEASURED
        if self.low > self.reference:
            return BETTER
        return WORSE if self.high < self.reference else OPEN


@dataclass(frozen=True)
class Change:
    """A figure before and after, as the run that made it measured it; without an interval."""

    name: str
    before: float
    after: float


@dataclass(frozen=True)
class Verdict:
    """All findings, those of evaluations first; ``conclusion`` is None where there is none.

    ``evaluations`` are all that measured it, also those whose results are not known here.
    """

    findings: tuple[Finding, ...]
    changes: tuple[Change, ...]
    evaluations: tuple[Record, ...]

    @property
    def deciding(self) -> tuple[Finding, ...]:
        """The findings that say better or worse: of evaluations, else of the run itself."""
        compared = [one for one in self.findings if one.conclusion != MEASURED]
        return tuple(one for one in compared if one.source) or tuple(compared)

    @property
    def conclusion(self) -> str | None:
        """``better``, ``worse``, ``mixed``, ``open``, or None where nothing was compared."""
        said = {one.conclusion for one in self.deciding}
        if {BETTER, WORSE} <= said:
            return MIXED
        return next((word for word in (BETTER, WORSE, OPEN) if word in said), None)


def find_parent(record: Record) -> str:
    """The ref of the model, or else the input of the same kind, that something was made from."""
    slots = {edge.slot: edge.ref for edge in record.inputs}
    alike = [edge.ref for edge in record.inputs if edge.kind == record.kind]
    return slots.get("model") or next(iter(alike), "")


def find_verdict(store: Store, made: Artifact | Tombstone) -> tuple[Verdict, list[Problem]]:
    """What is known of how good an artifact is, and which evaluations cannot be used."""
    record = made.record
    evaluations = list(find_evaluations(store, made))
    if record.kind == EVALUATION and isinstance(made, Artifact):
        evaluations.append(made)
    findings: list[Finding] = []
    problems: list[Problem] = []
    for each in evaluations:
        try:
            findings += read_evaluation(store, each)
        except ArtifactError as error:
            problems += error.problems
    # What an evaluation found is in its results; its record only says the same again.
    own = () if record.kind == EVALUATION else read_own(record)
    return Verdict(
        (*findings, *own),
        tuple(read_changes(record)),
        tuple(each.record for each in evaluations),
    ), problems


def find_evaluations(store: Store, made: Artifact | Tombstone) -> Iterator[Artifact]:
    """The evaluations in the store that measured this, or the same content, as their model.

    Those against what it was made from come first, and of each sort the newest. What came out the
    same again (``runs rerun``) is no second measurement: the oldest of them stands for all.
    """
    twins: dict[str, Artifact | Tombstone] = {made.ref: made}
    twins |= {each.ref: each for each in store.by_digest(made.record.digest)}
    downs = [walk(store, each, down=True, depth=1) for each in twins.values()]
    refs = [ref for down in downs for slot, ref in down.beyond(down.root) if slot == "model"]
    found = (store.find(ref) for ref in dict.fromkeys(refs))
    known = [each for each in found if each and each.kind == EVALUATION]
    known.sort(key=lambda each: each.record.created, reverse=True)
    distinct = {(each.digest, find_baseline(each.record)): each for each in known}
    parent = find_parent(made.record)
    yield from sorted(distinct.values(), key=lambda each: find_baseline(each.record) != parent)


def find_baseline(evaluation: Record) -> str:
    """The ref of what an evaluation compared a model with; "" where it did not."""
    return next((edge.ref for edge in evaluation.inputs if edge.slot == "baseline"), "")


def read_evaluation(store: Store, evaluation: Artifact) -> list[Finding]:
    """What ``results.json`` of an evaluation says; nothing, where it is of a form unknown here."""
    content = read_file(store, evaluation, "results.json")
    results = content.json() if content else {}
    place = {"against": find_baseline(evaluation.record), "source": evaluation.ref}
    return [*_wins(results, place), *_differences(results, place)]


def read_own(record: Record) -> Iterator[Finding]:
    """What the run that made it measured with an interval (``x``, ``x_low``, ``x_high``)."""
    seen = set()
    for key, value in record.metrics.items():
        name = key.rpartition("/")[2]
        low, high = record.metrics.get(f"{key}_low"), record.metrics.get(f"{key}_high")
        if name in seen or not all(map(_is_number, (value, low, high))):
            continue
        seen.add(name)
        words = name.replace("_", " ")
        numbers = float(value), float(low or 0.0), float(high or 0.0)
        parent = find_parent(record)
        if name.endswith("win_rate"):
            yield Finding(WIN_RATES.get(words, words), *numbers, 0.5, parent, "")
        elif name.endswith("_difference"):
            yield Finding(words, *numbers, 0.0, parent, "")
        elif name.endswith("_gain"):
            yield _gain(words.removesuffix(" gain"), numbers, parent, record)
        else:
            yield Finding(words, *numbers, None, "", "", is_share=0 <= numbers[0] <= 1)


def _gain(name: str, numbers: tuple[float, float, float], parent: str, record: Record) -> Finding:
    """How much a figure rose over training, with what it was before and after."""
    key = name.replace(" ", "_")
    ends = [record.metrics.get(f"{key}_{end}") for end in ("after", "before")]
    detail = "{} against {}".format(*map(format_number, ends)) if all(map(_is_number, ends)) else ""
    measure = f"true {name.removeprefix('truth ')}" if name.startswith("truth ") else name
    decides = name.removeprefix("truth ") in MORE_IS_BETTER
    return Finding(measure, *numbers, 0.0, parent, "", detail, is_share=False, decides=decides)


def read_changes(record: Record) -> Iterator[Change]:
    """Figures of the record that are told before and after (``x_before``, and ``x_after`` or x)."""
    for key, before in record.metrics.items():
        name = key.removesuffix("_before")
        after = record.metrics.get(f"{name}_after", record.metrics.get(name))
        is_repeated = "/" not in key and any(
            other.endswith(f"/{key}") for other in record.metrics if other != key
        )
        has_interval = f"{name}_gain_low" in record.metrics  # then it is a finding
        if (
            name != key
            and not has_interval
            and not is_repeated
            and _is_number(before)
            and _is_number(after)
        ):
            assert after is not None
            yield Change(name.rpartition("/")[2].replace("_", " "), float(before), float(after))


def _wins(results: Mapping[str, Any], place: Mapping[str, str]) -> Iterator[Finding]:
    """Rates of wins, as eval/arena counts them."""
    for name, words in (("judge", "preferred by the judge"), ("truth", "better by the truth")):
        rate = _table(_table(results, name), "win_rate")
        if numbers := _numbers(rate, "rate", "low", "high"):
            counts = ", ".join(f"{rate[key]} {key}" for key in ("wins", "ties", "losses"))
            yield Finding(words, *numbers, 0.5, place["against"], place["source"], counts)


def _differences(results: Mapping[str, Any], place: Mapping[str, str]) -> Iterator[Finding]:
    """Differences of rates, as eval/steerability counts them."""
    rates = _table(results, "rates")
    model, baseline = _table(rates, "model"), _table(rates, "baseline")
    differences = _table(results, "differences")
    for name in differences or model:
        words = "label followed" if name == "joint" else f"{name} as asked for"
        ours = _numbers(_table(model, name), "rate", "low", "high")
        theirs = _numbers(_table(baseline, name), "rate", "low", "high")
        if numbers := _numbers(_table(differences, name), "difference", "low", "high"):
            detail = f"{percent(ours[0])} against {percent(theirs[0])}" if ours and theirs else ""
            yield Finding(words, *numbers, 0.0, place["against"], place["source"], detail)
        elif ours:
            yield Finding(words, *ours, None, "", place["source"])


def percent(share: float) -> str:
    """A share in percent, in at most three digits."""
    return f"{format_number(round(100 * share, 1))}%"


def _table(values: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    found = values.get(key)
    return found if isinstance(found, Mapping) else {}


def _numbers(values: Mapping[str, Any], *keys: str) -> tuple[float, float, float] | None:
    found = [values.get(key) for key in keys]
    if not all(map(_is_number, found)):
        return None
    first, second, third = (float(value) for value in found if value is not None)
    return first, second, third


def _is_number(value: object) -> bool:
    is_one = isinstance(value, int | float) and not isinstance(value, bool)
    return is_one and math.isfinite(float(value))  # type: ignore[arg-type]
