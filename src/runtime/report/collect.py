"""Everything that a report says, taken from a store and the folder of a run, as plain data.

What cannot be read is a problem in the report, not the end of it: the other facts still stand.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from nemotron_style.runtime.errors import ArtifactError, Problem, StepsError
from nemotron_style.runtime.report.answers.evaluation import read_evaluation_answers
from nemotron_style.runtime.report.answers.table import Table
from nemotron_style.runtime.report.answers.training import read_run_answers
from nemotron_style.runtime.report.drawing.curves import Curves, read_curves
from nemotron_style.runtime.report.page.embed import Document, embed_plan, embed_records
from nemotron_style.runtime.report.subject import Subject
from nemotron_style.runtime.report.verdict import EVALUATION, Verdict, find_verdict
from nemotron_style.runtime.secrets.redact import redact
from nemotron_style.runtime.store.diff import Difference, compare
from nemotron_style.runtime.store.lineage.graph import Lineage, Node, around, walk
from nemotron_style.runtime.store.lineage.text import render_tree
from nemotron_style.runtime.store.record import Artifact, Record
from nemotron_style.runtime.store.store import Store

MOST_RELATIVES = 4
"""Ancestors that an artifact is compared with, the nearest first."""
LOG_LINES = 25
MOST_LINES = 1000
"""Of a text that is shown whole elsewhere."""


@dataclass(frozen=True)
class Relative:
    """Why an artifact is not the same as ``ref``: one it was made from, or its earlier version."""

    ref: str
    relation: str
    differences: tuple[Difference, ...]


@dataclass
class Facts:
    """What is known of a subject; ``problems`` are what could not be read, or was changed."""

    subject: Subject
    verdict: Verdict | None = None
    answers: list[Table] = field(default_factory=list)
    curves: Curves | None = None
    family: Lineage | None = None
    tree: str = ""
    relatives: list[Relative] = field(default_factory=list)
    relatives_left_out: int = 0
    documents: list[Document] = field(default_factory=list)
    documents_left_out: int = 0
    attempts: list[dict[str, Any]] = field(default_factory=list)
    launch: str = ""
    log: str = ""
    problems: list[Problem] = field(default_factory=list)


def collect_facts(store: Store, subject: Subject) -> Facts:
    """All that the store and the run's folder tell of a subject."""
    facts = Facts(subject)
    nodes: dict[str, Node] = {}
    if made := subject.made:
        facts.verdict, unusable = find_verdict(store, made)
        facts.problems += unusable
        facts.family = around(store, made)
        up = walk(store, made)
        facts.tree = cut_lines(render_tree(up), f"nemotron-style artifacts lineage {made.ref}")
        nodes = facts.family.nodes | up.nodes
        known = [store.find(record.ref) for record in facts.verdict.evaluations]
        # The card of a judge is an evaluation that lies in the artifact itself.
        own = [made] if isinstance(made, Artifact) and made.kind != EVALUATION else []
        for evaluation in filter(None, (*known, *own)):
            try:
                facts.answers += read_evaluation_answers(store, evaluation)
            except ArtifactError as error:
                facts.problems += error.problems
        _compare_relatives(facts, store, up)
    if subject.run:
        _read_run(facts)
    facts.documents, facts.documents_left_out = embed_records(store, nodes.values())
    run = subject.run or subject.kept
    if run and (plan := embed_plan(run)):
        facts.documents.append(plan)
    return facts


def _read_run(facts: Facts) -> None:
    run = facts.subject.run
    assert run is not None
    facts.answers += read_run_answers(run)
    facts.curves = read_curves(run.path / "metrics.jsonl")
    facts.attempts = [
        {"started": attempt.record.get("started"), "executor": attempt.executor, **attempt.summary}
        for attempt in run.attempts
    ]
    with contextlib.suppress(OSError):
        launch = (run.path / "launch.sh").read_text(encoding="utf-8", errors="replace")
        facts.launch = cut_lines(redact(launch), f"launch.sh of {run.run_id}")
    last = run.last_attempt
    if last and not facts.subject.is_complete:
        with contextlib.suppress(OSError):
            lines = last.log.read_bytes()[-20_000:].decode("utf-8", "replace").splitlines()
            facts.log = redact("\n".join(lines[-LOG_LINES:]))


def _compare_relatives(facts: Facts, store: Store, up: Lineage) -> None:
    record = facts.subject.record
    assert record is not None
    found = list(find_relatives(store, record, up))
    facts.relatives_left_out = max(0, len(found) - MOST_RELATIVES)
    # A comparison looks at records alone, so the files need not be there.
    ours = Artifact(record, store.root)
    for other, relation in found[:MOST_RELATIVES]:
        differences = compare(Artifact(other, store.root), ours)
        facts.relatives.append(Relative(other.ref, relation, tuple(differences)))


def find_relatives(store: Store, record: Record, up: Lineage) -> Iterator[tuple[Record, str]]:
    """Ancestors of the same kind or step, the nearest first, and the version before this one."""
    step = record.producer.step if record.producer else ""
    for node in up.nodes.values():
        other = node.record
        if other is None or other.ref == record.ref:
            continue
        is_of_step = bool(other.producer and step and other.producer.step == step)
        if is_of_step or other.kind == record.kind:
            yield other, "an ancestor of the same " + ("step" if is_of_step else "kind")
    for version in range(record.version - 1, 0, -1):
        ref = f"{record.name}:v{version}"
        if ref in up.nodes:
            return
        with contextlib.suppress(StepsError):
            if earlier := store.find(ref) or store.tombstone(ref):
                yield earlier.record, "the version before"
                return


def cut_lines(text: str, whole: str) -> str:
    """The first :data:`MOST_LINES` lines of a text; ``whole`` says where all of it is."""
    lines = text.splitlines()
    if len(lines) <= MOST_LINES:
        return text
    return "\n".join([*lines[:MOST_LINES], f"... {len(lines) - MOST_LINES} more lines: {whole}"])
