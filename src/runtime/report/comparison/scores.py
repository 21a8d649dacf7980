"""Figures of several models side by side, and which is best where that can be said.

A figure has a best value only if it is known which direction is better, and only among those that
were measured in the same way: by the same step, on the same held-out rows, by the same judge. The
row says which were not, or why it has none.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from nemotron_style.runtime.report.subject import Subject
from nemotron_style.runtime.report.verdict import Finding, Verdict
from nemotron_style.runtime.store.record import Edge
from nemotron_style.runtime.store.store import Store

Direction = Literal["higher", "lower", ""]

HIGHER = re.compile(
    r"hit_rate(_model)?$|win_rate$|accuracy($|_(?!low|high))|_difference$|(^|[/_])truth$|truth_\w+_mean$"
    r"|(^|[/_])reward(_mean|/mean)?$|_agreement$|order_consistency$|parse_rate$"
)
LOWER = re.compile(
    r"distance(_after)?$|parse_failure_rate$|failed_share$|failed_judgements$|max_logit_difference$"
)
LOSS = re.compile(r"^validation_loss")
LOSS_STEPS = ("sft/chat", "reward/regression")
"""Steps whose loss has a meaning by itself; that of the others only has a gradient that does."""
TRAINING = ("sft", "reward", "rs", "rl")
TRAINED_ON = ("data", "prompts", "adapter")
MODEL_SLOTS = ("model", "sampler", "policy")


@dataclass(frozen=True)
class Score:
    """One value, with the ends of its interval where there is one; None where it is missing."""

    value: Any = None
    low: float | None = None
    high: float | None = None
    source: str = ""
    conditions: tuple[object, ...] = ()
    is_best: bool = False


@dataclass(frozen=True)
class ScoreRow:
    """A figure of each subject, in their order; ``note`` says why no best one is marked.

    ``apart`` are the places of those that were measured in another way than the others.
    """

    name: str
    direction: Direction
    scores: tuple[Score, ...]
    note: str = ""
    apart: tuple[int, ...] = ()

    @property
    def is_shared(self) -> bool:
        """Whether two of them have it."""
        return sum(score.value is not None for score in self.scores) > 1

    @property
    def best(self) -> list[int]:
        """The places of the best ones."""
        return [at for at, score in enumerate(self.scores) if score.is_best]

    @property
    def overlapping(self) -> list[int]:
        """Places of those whose interval overlaps with that of the best one."""
        if len(self.best) != 1:
            return []
        first = self.scores[self.best[0]]
        return [
            at
            for at, score in enumerate(self.scores)
            if score is not first and at not in self.apart and _overlap(first, score)
        ]


def read_scores(
    store: Store, subjects: Sequence[Subject], verdicts: Sequence[Verdict | None]
) -> list[ScoreRow]:
    """The figures of evaluations first, then what the runs measured themselves."""
    evaluated = _of_evaluations(store, subjects, verdicts)
    rows = [_mark(row) for row in (*evaluated, *_of_runs(subjects))]
    # The most telling first: those with a best one, then those that could have one.
    return sorted(rows, key=lambda row: (not row.best, not row.direction))


def find_direction(name: str, steps: Iterable[str]) -> Direction:
    """Which values of a figure are better; "" where that is not known."""
    if HIGHER.search(name):
        return "higher"
    is_loss = LOSS.search(name) and set(steps) <= set(LOSS_STEPS)
    return "lower" if LOWER.search(name) or is_loss else ""


def _of_evaluations(
    store: Store, subjects: Sequence[Subject], verdicts: Sequence[Verdict | None]
) -> list[ScoreRow]:
    """What evaluations in the store found out about each, the newest one of a measure."""
    found: dict[str, dict[int, Score]] = {}
    for at, (subject, verdict) in enumerate(zip(subjects, verdicts, strict=True)):
        for finding in verdict.findings if verdict else ():
            if finding.source and finding.source != subject.name:
                place = found.setdefault(finding.measure, {})
                place.setdefault(at, _score(store, finding))
    places = range(len(subjects))
    return [
        ScoreRow(measure, "higher", tuple(scores.get(at, Score()) for at in places))
        for measure, scores in found.items()
    ]


def _score(store: Store, finding: Finding) -> Score:
    evaluation = store.find(finding.source)
    conditions: tuple[object, ...] = ()
    if evaluation:
        producer, inputs = evaluation.record.producer, evaluation.record.inputs
        step = producer.step if producer else ""
        conditions = (step, *_digests(inputs, without=("model",)))
    return Score(finding.value, finding.low, finding.high, finding.source, conditions)


def _of_runs(subjects: Sequence[Subject]) -> Iterable[ScoreRow]:
    """The final figures of each record, an interval together with its value."""
    figures = [_figures(subject) for subject in subjects]
    names = dict.fromkeys(name for each in figures for name in each)
    ends = {f"{name}{end}" for name in names for end in ("_low", "_high")}
    steps = [_step(subject) for subject in subjects]
    for name in names:
        # The last line of the metrics stands in the record under its own, longer names too.
        repeated = "/" not in name and any(each.endswith(f"/{name}") for each in names)
        if name in ends or repeated:
            continue
        scores = tuple(
            Score(
                each.get(name),
                each.get(f"{name}_low"),
                each.get(f"{name}_high"),
                conditions=_conditions(subject),
            )
            for each, subject in zip(figures, subjects, strict=True)
        )
        yield ScoreRow(name, find_direction(name, steps), scores)


def _mark(row: ScoreRow) -> ScoreRow:
    """The row with its best values marked, or with the reason why none is.

    Compared are those that were measured in the same way, if that is most of them.
    """
    known = [score for score in row.scores if _is_number(score.value)]
    if not row.direction:
        return replace(row, note="which direction is better is not known")
    if len(known) < 2:
        return replace(row, note="measured for one alone")
    (conditions, count), *others = Counter(score.conditions for score in known).most_common()
    if count < 2 or (others and others[0][1] == count):
        return replace(row, note="not measured in the same way")
    alike = [score for score in known if score.conditions == conditions]
    apart = [at for at, score in enumerate(row.scores) if score in known and score not in alike]
    row = replace(row, apart=tuple(apart))
    values = {score.value for score in alike}
    if len(values) == 1:
        return row
    top = max(values) if row.direction == "higher" else min(values)
    scores = tuple(
        replace(score, is_best=at not in apart and score.value == top)
        for at, score in enumerate(row.scores)
    )
    return replace(row, scores=scores)


def _conditions(subject: Subject) -> tuple[object, ...]:
    """What a figure of a run depends on besides the model: its step, and what it measured on."""
    step = _step(subject)
    trained_on = TRAINED_ON if step.partition("/")[0] in TRAINING else ()
    inputs = subject.record.inputs if subject.record else ()
    return (step, *_digests(inputs, without=(*MODEL_SLOTS, *trained_on)))


def _digests(inputs: Sequence[Edge], *, without: Sequence[str]) -> list[tuple[str, str]]:
    return sorted((edge.slot, edge.digest) for edge in inputs if edge.slot not in without)


def _figures(subject: Subject) -> Mapping[str, Any]:
    if subject.record:
        return subject.record.metrics
    figures: Mapping[str, Any] = (
        (subject.run.outputs or {}).get("figures", {}) if subject.run else {}
    )
    return figures


def _step(subject: Subject) -> str:
    if subject.record and subject.record.producer:
        return subject.record.producer.step
    return subject.plan.step if subject.plan else ""


def _overlap(left: Score, right: Score) -> bool:
    if None in (left.low, left.high, right.low, right.high):
        return False
    return left.low <= right.high and right.low <= left.high  # type: ignore[operator]


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value == value
