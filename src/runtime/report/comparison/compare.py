"""Several artifacts or runs on one page: figures, curves over each other, answers side by side.

Only what belongs together stands together: answers to one prompt, curves of one figure, config
keys that differ. What one of them has and another lacks is named.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from markupsafe import Markup

from nemotron_style.runtime.errors import Problem, RefError, UsageError
from nemotron_style.runtime.report.answers import Cell, read_run_answers
from nemotron_style.runtime.report.comparison.differences import Difference, find_differences
from nemotron_style.runtime.report.comparison.scores import ScoreRow, read_scores
from nemotron_style.runtime.report.curves import collect_points, rank_figure, read_sampled
from nemotron_style.runtime.report.embed import Document, embed_plan, embed_records, render_sealed
from nemotron_style.runtime.report.figures import Series, draw_lines
from nemotron_style.runtime.report.subject import Subject, find_subject
from nemotron_style.runtime.store.lineage.graph import describe_node, walk
from nemotron_style.runtime.store.store import Store

FEWEST, MOST = 2, 8
LETTERS = "ABCDEFGH"
SHOWN_CHARTS = 6
MOST_CHARTS = 24
MOST_OPEN_KEYS = 12
"""Keys that not all have, up to which they stand open."""
CUT_PROMPT = "… "
"""Begins a prompt of which only the end is kept."""


@dataclass(frozen=True)
class SharedAnswers:
    """A prompt and the answer of each subject; None of one that was not asked it."""

    prompt: str
    cells: tuple[Cell | None, ...]


@dataclass(frozen=True)
class Comparison:
    """All that the page says."""

    subjects: tuple[Subject, ...]
    scores: tuple[ScoreRow, ...]
    differences: Mapping[str, Sequence[Difference]]
    charts: tuple[Markup, ...]
    charts_left_out: tuple[str, ...]
    single_curves: Mapping[str, Sequence[str]]
    """Figures that one subject alone has a curve of, by its letter."""
    answers: tuple[SharedAnswers, ...]
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
    charts, left_out, single = draw_over_each_other(subjects)
    answers, not_shared = align_answers(subjects)
    scores, problems = read_scores(store, subjects)
    return Comparison(
        subjects,
        tuple(scores),
        find_differences(subjects),
        charts,
        left_out,
        single,
        answers,
        not_shared,
        *embed_documents(store, subjects),
        problems,
    )


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


def draw_over_each_other(
    subjects: Sequence[Subject],
) -> tuple[tuple[Markup, ...], tuple[str, ...], dict[str, list[str]]]:
    """A chart for each figure that several have; those without room, and those of one alone."""
    points = [
        collect_points(read_sampled(subject.run.path / "metrics.jsonl")[0]) if subject.run else {}
        for subject in subjects
    ]
    owners: dict[str, list[int]] = {}
    for at, figures in enumerate(points):
        for name in figures:
            owners.setdefault(name, []).append(at)
    ends = {f"{name}{end}" for name in owners for end in ("_low", "_high")}
    shared = [name for name, have in owners.items() if len(have) > 1 and name not in ends]
    moving = [name for name in shared if _moves([points[at][name] for at in owners[name]])]
    moving.sort(key=lambda name: ("validation" not in name, *rank_figure(name)))
    charts = [
        draw_lines(
            name.replace("_", " "),
            [
                Series(subjects[at].name, tuple(points[at][name]), style=at, mark=LETTERS[at])
                for at in owners[name]
            ],
        )
        for name in moving[:MOST_CHARTS]
    ]
    single: dict[str, list[str]] = {}
    for name, have in owners.items():
        if len(have) == 1 and name not in ends:
            single.setdefault(LETTERS[have[0]], []).append(name)
    return tuple(filter(None, charts)), tuple(moving[MOST_CHARTS:]), single


def align_answers(
    subjects: Sequence[Subject],
) -> tuple[tuple[SharedAnswers, ...], dict[str, int]]:
    """Answers after training to prompts that several were asked; how many each alone was asked."""
    asked = [dict(_answers_of(subject)) for subject in subjects]
    keys = dict.fromkeys(key for answers in asked for key in answers)
    found = [(key, tuple(answers.get(key) for answers in asked)) for key in keys]
    rows = [SharedAnswers(key[0], cells) for key, cells in found if len(_known(cells)) > 1]
    # The prompts that most of them were asked first, else in their order.
    rows.sort(key=lambda row: -len(_known(row.cells)))
    left = {
        letter: lonely
        for at, letter in enumerate(LETTERS[: len(subjects)])
        if (lonely := sum(len(_known(cells)) == 1 and cells[at] is not None for _, cells in found))
    }
    return tuple(rows), left


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
        version=importlib.metadata.version("nemotron-style"),
    )


def tell_verdict(comparison: Comparison) -> list[str]:
    """Which is best, by each figure that says so; a sentence each, at most three."""
    said = []
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


Prompt = tuple[str, int, tuple[str, ...]]
"""Its text, its number among those of equal text, and, where it is cut, the rows it is from."""


def _answers_of(subject: Subject) -> Iterable[tuple[Prompt, Cell]]:
    """The last answer to each prompt of the table that the run wrote down."""
    tables = read_run_answers(subject.run) if subject.run else []
    seen: dict[str, int] = {}
    for row in next((each.rows for each in tables if each.title == "Before and after"), ()):
        seen[row.prompt] = seen.get(row.prompt, 0) + 1
        # Of a long prompt the end alone is kept: it is the same one only in the same rows.
        rows = _rows_read(subject) if row.prompt.startswith(CUT_PROMPT) else ()
        yield (row.prompt, seen[row.prompt], rows), row.cells[-1]


def _moves(lines: Sequence[Sequence[tuple[float, float]]]) -> bool:
    """Whether there is a curve: what was measured once, or never changes, is told in the table."""
    several = any(len({x for x, _ in points}) > 1 for points in lines)
    return several and len({y for points in lines for _, y in points}) > 1


def _known(cells: Sequence[Cell | None]) -> list[Cell]:
    return [cell for cell in cells if cell is not None]


def _rows_read(subject: Subject) -> tuple[str, ...]:
    inputs = subject.record.inputs if subject.record else ()
    return tuple(edge.digest for edge in inputs if edge.kind.endswith("_jsonl"))
