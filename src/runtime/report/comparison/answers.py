"""Answers of several models to the same prompts: of their evaluations, and of their runs.

In an evaluation every model is asked the same prompts; those that were asked by the same step, with
the same label where there is one, stand side by side. What each run took before and after training
stands beside that of the others where the prompt is the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nemotron_style.runtime.errors import ArtifactError, Problem
from nemotron_style.runtime.report.answers.evaluation import (
    SLOTS,
    is_labelled,
    is_match,
    show_labelled,
    show_match,
)
from nemotron_style.runtime.report.answers.table import SHOWN, Cell
from nemotron_style.runtime.report.answers.training import read_run_answers
from nemotron_style.runtime.report.evidence import read_file
from nemotron_style.runtime.report.subject import Subject
from nemotron_style.runtime.report.verdict import Verdict
from nemotron_style.runtime.store.record import Artifact
from nemotron_style.runtime.store.store import Store

CUT_PROMPT = "… "
"""Begins a prompt of which only the end is kept."""


@dataclass(frozen=True)
class SharedAnswers:
    """A prompt and the answer of each subject; None of one that was not asked it."""

    prompt: str
    cells: tuple[Cell | None, ...]


@dataclass(frozen=True)
class SharedTable:
    """Answers to the same prompts; ``note`` says where they are from and what was chosen.

    ``places`` are those of the subjects that were asked any of them: the columns.
    """

    title: str
    note: str
    places: tuple[int, ...]
    rows: tuple[SharedAnswers, ...]


def read_shared_evaluations(
    store: Store, subjects: Sequence[Subject], verdicts: Sequence[Verdict | None]
) -> tuple[list[SharedTable], list[Problem]]:
    """A table for each step that evaluated several of them, and what cannot be read."""
    answers: dict[str, dict[str, dict[int, Cell]]] = {}
    problems: list[Problem] = []
    seen: set[str] = set()
    for evaluation in _find_evaluations(store, verdicts):
        if evaluation.ref in seen or evaluation.record.producer is None:
            continue
        seen.add(evaluation.ref)
        try:
            content = read_file(store, evaluation, "samples.jsonl")
        except ArtifactError as error:
            problems += error.problems
            continue
        places = _place_slots(evaluation, subjects)
        table = answers.setdefault(evaluation.record.producer.step, {})
        for key, cells in _read_cells(content.rows() if content else []):
            row = table.setdefault(key, {})
            for slot, at in places.items():
                if slot in cells:
                    row.setdefault(at, cells[slot])
    tables = [_choose(step, rows) for step, rows in answers.items()]
    return [table for table in tables if table.rows], problems


def align_answers(
    subjects: Sequence[Subject],
) -> tuple[tuple[SharedAnswers, ...], dict[str, int]]:
    """Answers after training to prompts that several were asked; how many each alone was asked,
    by its name."""
    asked = [dict(_answers_of(subject)) for subject in subjects]
    keys = dict.fromkeys(key for answers in asked for key in answers)
    found = [(key, tuple(answers.get(key) for answers in asked)) for key in keys]
    rows = [SharedAnswers(key[0], cells) for key, cells in found if len(_known(cells)) > 1]
    # The prompts that most of them were asked first, else in their order.
    rows.sort(key=lambda row: -len(_known(row.cells)))
    left = {
        subject.name: lonely
        for at, subject in enumerate(subjects)
        if (lonely := sum(len(_known(cells)) == 1 and cells[at] is not None for _, cells in found))
    }
    return tuple(rows), left


def _find_evaluations(store: Store, verdicts: Sequence[Verdict | None]) -> Iterator[Artifact]:
    for verdict in verdicts:
        for record in verdict.evaluations if verdict else ():
            if evaluation := store.find(record.ref):
                yield evaluation


def _place_slots(evaluation: Artifact, subjects: Sequence[Subject]) -> dict[str, int]:
    """Which of the subjects stands in which slot of an evaluation."""
    places = {subject.name: at for at, subject in enumerate(subjects)}
    return {
        edge.slot: places[edge.ref]
        for edge in evaluation.record.inputs
        if edge.slot in SLOTS and edge.ref in places
    }


def _read_cells(rows: Iterable[Mapping[str, Any]]) -> Iterator[tuple[str, dict[str, Cell]]]:
    """What was asked, told apart from equal questions by its number, and the answers by slot."""
    counts: dict[str, int] = {}
    for row in rows:
        if is_match(row):
            slots: tuple[str, ...] = SLOTS
            shown = show_match(row)
        elif is_labelled(row):
            slots = tuple(slot for slot in SLOTS if slot in row)
            shown = show_labelled(row, slots)
        else:
            continue
        counts[shown.prompt] = number = counts.get(shown.prompt, 0) + 1
        yield f"{shown.prompt}\0{number}", dict(zip(slots, shown.cells, strict=True))


def _choose(step: str, rows: Mapping[str, Mapping[int, Cell]]) -> SharedTable:
    """Rows that most of them answered, those first in which one did better than another."""
    shared = [(key, cells) for key, cells in rows.items() if len(cells) > 1]
    shared.sort(key=lambda row: (-len(row[1]), len({cell.tone for cell in row[1].values()}) < 2))
    by_prompt: dict[str, tuple[str, Mapping[int, Cell]]] = {}
    for key, cells in shared:  # other prompts before the same one again
        by_prompt.setdefault(key.partition("\0")[0], (key, cells))
    chosen = [*by_prompt.values(), *(row for row in shared if row not in by_prompt.values())]
    note = f"{min(SHOWN, len(shared))} of {len(shared)} prompts that several were asked by {step}, "
    note += "those first in which one did better than another."
    places = tuple(sorted({at for _, cells in chosen[:SHOWN] for at in cells}))
    return SharedTable(
        f"Asked by {step}",
        note,
        places,
        tuple(
            SharedAnswers(key.partition("\0")[0], tuple(map(cells.get, places)))
            for key, cells in chosen[:SHOWN]
        ),
    )


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


def _known(cells: Sequence[Cell | None]) -> list[Cell]:
    return [cell for cell in cells if cell is not None]


def _rows_read(subject: Subject) -> tuple[str, ...]:
    inputs = subject.record.inputs if subject.record else ()
    return tuple(edge.digest for edge in inputs if edge.kind.endswith("_jsonl"))
