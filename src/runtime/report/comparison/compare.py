"""Several artifacts or runs on one page: figures, curves over each other, answers side by side.

Only what belongs together stands together: answers to one prompt, curves of one figure, config
keys that differ. What one of them has and another lacks is named.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from markupsafe import Markup

from nemotron_style.runtime.errors import Problem, RefError, UsageError
from nemotron_style.runtime.report.comparison.answers import (
    SharedAnswers,
    SharedTable,
    align_answers,
    read_shared_evaluations,
)
from nemotron_style.runtime.report.comparison.curves import draw_over_each_other
from nemotron_style.runtime.report.comparison.differences import Difference, find_differences
from nemotron_style.runtime.report.comparison.direct import Meeting, find_meetings, tell_meetings
from nemotron_style.runtime.report.comparison.scores import ScoreRow, read_scores
from nemotron_style.runtime.report.drawing.intervals import (
    Interval,
    draw_interval,
    draw_scale,
    fit_scale,
)
from nemotron_style.runtime.report.findings import draw_findings
from nemotron_style.runtime.report.page.embed import (
    Document,
    embed_plan,
    embed_records,
    render_sealed,
)
from nemotron_style.runtime.report.subject import Subject, find_subject
from nemotron_style.runtime.report.verdict import Verdict, find_verdict
from nemotron_style.runtime.store.lineage.graph import describe_node, walk
from nemotron_style.runtime.store.store import Store

FEWEST, MOST = 2, 8
LETTERS = "ABCDEFGH"
SHOWN_CHARTS = 6
MOST_OPEN_KEYS = 12
"""Keys that not all have, up to which they stand open."""


@dataclass(frozen=True)
class Comparison:
    """All that the page says."""

    subjects: tuple[Subject, ...]
    meetings: tuple[Meeting, ...]
    """What was measured of one against another of them."""
    scores: tuple[ScoreRow, ...]
    differences: Mapping[str, Sequence[Difference]]
    charts: tuple[Markup, ...]
    charts_left_out: tuple[str, ...]
    single_curves: Mapping[str, Sequence[str]]
    """Figures that one subject alone has a curve of, by its letter."""
    tables: tuple[SharedTable, ...]
    """Answers of evaluations to the same prompts."""
    answers: tuple[SharedAnswers, ...]
    """Answers that the runs took after training."""
    not_shared: Mapping[str, int]
    """How many prompts a subject alone was asked, by its letter."""
    documents: Sequence[Document] = ()
    documents_left_out: int = 0
    problems: Sequence[Problem] = ()

    @property
    def letters(self) -> str:
        """The letter of each subject."""
        return LETTERS[: len(self.subjects)]


def compare_subjects(store: Store, words: Sequence[str]) -> Comparison:
    """Compare what ``words`` name. Raises UsageError for too few, too many, or one named twice,
    and RefError for those that name nothing, all of them at once."""
    subjects = find_subjects(store, words)
    letters = LETTERS[: len(subjects)]
    charts, left_out, single = draw_over_each_other(subjects, letters)
    answers, alone = align_answers(subjects)
    names = {subject.name: letter for subject, letter in zip(subjects, letters, strict=True)}
    verdicts, problems = find_verdicts(store, subjects)
    tables, unreadable = read_shared_evaluations(store, subjects, verdicts)
    return Comparison(
        subjects,
        tuple(find_meetings(subjects, verdicts, letters)),
        tuple(read_scores(store, subjects, verdicts)),
        find_differences(subjects),
        charts,
        left_out,
        single,
        tuple(tables),
        answers,
        {names[name]: count for name, count in alone.items()},
        *embed_documents(store, subjects),
        list({str(each): each for each in (*problems, *unreadable)}.values()),
    )


def find_verdicts(
    store: Store, subjects: Sequence[Subject]
) -> tuple[list[Verdict | None], list[Problem]]:
    """What is known of how good each is, None of one that made nothing; and what cannot be read."""
    verdicts: list[Verdict | None] = []
    problems: list[Problem] = []
    for subject in subjects:
        if subject.made is None:
            verdicts.append(None)
            continue
        verdict, unreadable = find_verdict(store, subject.made)
        verdicts.append(verdict)
        problems += unreadable
    return verdicts, problems


def find_subjects(store: Store, words: Sequence[str]) -> tuple[Subject, ...]:
    """What ``words`` name, each once; raises as :func:`compare_subjects`."""
    where, allowed = "--compare", f"{FEWEST} to {MOST} artifacts or runs"
    if not FEWEST <= len(words) <= MOST:
        got = f"{len(words)}: {', '.join(words)}" if words else "none"
        raise UsageError(
            Problem(where=where, what="cannot compare so many", got=got, allowed=allowed)
        )
    subjects: dict[str, Subject] = {}
    problems: list[Problem] = []
    for word in words:
        try:
            subject = find_subject(store, word)
        except RefError as error:
            problems += error.problems
            continue
        if subject.name in subjects:
            what = "is named twice"
            problems.append(Problem(where=where, what=what, got=f"{word} ({subject.name})"))
        subjects[subject.name] = subject
    if problems:
        raise RefError(problems)
    return tuple(subjects.values())


def embed_documents(store: Store, subjects: Sequence[Subject]) -> tuple[tuple[Document, ...], int]:
    """The records of the subjects and of what they were made from, and their plans; and how many
    records there is no room for."""
    made = [subject.made for subject in subjects if subject.made]
    nodes = {each.ref: describe_node(each) for each in made}
    for each in made:
        nodes = {**nodes, **walk(store, each, depth=1).nodes, each.ref: nodes[each.ref]}
    records, left_out = embed_records(store, nodes.values())
    plans = [embed_plan(subject.run) for subject in subjects if subject.run]
    return (*records, *filter(None, plans)), left_out


def render_comparison(comparison: Comparison) -> str:
    """The page."""
    names = " · ".join(subject.name for subject in comparison.subjects)
    return render_sealed(
        "compare.html.j2",
        of=names,
        title=names,
        documents=comparison.documents,
        left_out=comparison.documents_left_out,
        page=comparison,
        rows=list(zip(comparison.letters, comparison.subjects, strict=True)),
        kinds=sorted({each.record.kind for each in comparison.subjects if each.record}),
        shown_charts=SHOWN_CHARTS,
        most_open=MOST_OPEN_KEYS,
        verdict=tell_verdict(comparison),
        scored=[_draw_score(row) for row in comparison.scores],
        meetings=[_draw_meeting(one) for one in comparison.meetings],
        version=importlib.metadata.version("nemotron-style"),
    )


def tell_verdict(comparison: Comparison) -> list[str]:
    """Who is better than whom where they met, else which is best by each figure that says so; a
    sentence each, at most three."""
    said = list(tell_meetings(comparison.meetings))
    for row in comparison.scores:
        if len(row.best) != 1:
            continue
        at = row.best[0]
        text = f"By {row.name.replace('_', ' ')}, {comparison.letters[at]} is best"
        others = [comparison.letters[each] for each in row.overlapping]
        if row.apart:
            apart = [comparison.letters[each] for each in row.apart]
            text += f" of those measured in the same way (not {', '.join(apart)})"
        if others:
            text += f", but its interval overlaps that of {' and '.join(others)}"
        said.append(f"{text}.")
    return said[:3] or ["Nothing that was measured in the same way says which is better."]


def as_data(comparison: Comparison) -> dict[str, Any]:
    """The comparison as one JSON document; of curves, the names alone."""
    return {
        "subjects": dict(
            zip(comparison.letters, (each.name for each in comparison.subjects), strict=True)
        ),
        "verdict": tell_verdict(comparison),
        "meetings": [
            {
                "of": one.letter,
                "against": one.other,
                "measured_by": one.source or None,
                "findings": [
                    {
                        "measure": each.measure,
                        "value": each.value,
                        "low": each.low,
                        "high": each.high,
                        "conclusion": each.conclusion,
                    }
                    for each in one.findings
                ],
            }
            for one in comparison.meetings
        ],
        "scores": [
            {
                "name": row.name,
                "direction": row.direction or None,
                "values": [score.value for score in row.scores],
                "best": [comparison.letters[at] for at in row.best],
                "note": row.note or None,
                "measured_otherwise": [comparison.letters[at] for at in row.apart],
            }
            for row in comparison.scores
        ],
        "differences": {
            group: [asdict(row) for row in rows] for group, rows in comparison.differences.items()
        },
        "answers": [
            {"prompt": row.prompt, "answers": [cell.text if cell else None for cell in row.cells]}
            for row in comparison.answers
        ],
        "prompts_not_shared": dict(comparison.not_shared),
    }


def _draw_meeting(meeting: Meeting) -> dict[str, Any]:
    """The findings of a meeting as rows of a table."""
    by = meeting.source or f"the run of {meeting.letter} itself, on held-out rows"
    title = f"{meeting.letter} against {meeting.other}, measured by {by}"
    return draw_findings(title, meeting.findings)


def _draw_score(row: ScoreRow) -> dict[str, Any]:
    """A figure with the interval of each that has one, on a scale of the row."""
    intervals = {
        at: Interval(score.value, score.low, score.high)
        for at, score in enumerate(row.scores)
        if score.value is not None and score.low is not None and score.high is not None
    }
    if len(intervals) < 2:
        return {"row": row, "drawings": {}, "scale": Markup("")}
    scale = fit_scale(list(intervals.values()), None)
    drawings = {at: draw_interval(each, scale, style=at) for at, each in intervals.items()}
    return {"row": row, "drawings": drawings, "scale": draw_scale(scale)}
