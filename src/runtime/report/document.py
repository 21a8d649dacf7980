"""The report of one artifact or run as one HTML file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from markupsafe import Markup

from nemotron_style.runtime.report.collect import Facts, Relative
from nemotron_style.runtime.report.curves import SHOWN
from nemotron_style.runtime.report.embed import render_sealed
from nemotron_style.runtime.report.family import draw_family
from nemotron_style.runtime.report.figures import Interval, draw_intervals
from nemotron_style.runtime.report.verdict import (
    BETTER,
    MIXED,
    OPEN,
    WORSE,
    Finding,
    Verdict,
    percent,
)
from nemotron_style.runtime.store.diff import Difference
from nemotron_style.runtime.store.lineage.text import describe_maker
from nemotron_style.runtime.store.record import Record
from nemotron_style.runtime.units import format_number, format_time
from nemotron_style.runtime.validation import flatten

MOST_DIFFERENCES = 150
"""Keys of one comparison."""
_RECORD_TABLES = ("environment", "hardware", "code", "seeds")


def render_report(facts: Facts, *, suggestions: Sequence[tuple[str, str]] = ()) -> str:
    """The page. ``suggestions`` are commands that would measure the subject, each with a word."""
    subject, record = facts.subject, facts.subject.record
    return render_sealed(
        "report.html.j2",
        title=f"{subject.name}: report",
        of=subject.name,
        subject=subject,
        record=record,
        state=describe_state(facts),
        maker=describe_maker(record) if record else "",
        headline=write_headline(facts),
        conclusion=(facts.verdict.conclusion if facts.verdict else None) or "",
        groups=list(_group_findings(facts.verdict.findings)) if facts.verdict else [],
        changes=facts.verdict.changes if facts.verdict else (),
        figures=list(_draw_verdict(facts.verdict)) if facts.verdict else [],
        evaluations=facts.verdict.evaluations if facts.verdict else (),
        suggestions=suggestions,
        answers=facts.answers,
        curves=facts.curves,
        shown=SHOWN,
        family=draw_family(facts.family) if facts.family else Markup(""),
        tree=facts.tree,
        relatives=[_write_relative(one) for one in facts.relatives],
        relatives_left_out=facts.relatives_left_out,
        plan=subject.plan,
        plan_text=next((d.text for d in facts.documents if d.kind == "plan"), ""),
        launch=facts.launch,
        log=facts.log,
        attempts=[_write_attempt(one) for one in facts.attempts],
        tables=list(_write_tables(record)) if record else [],
        problems=[str(problem) for problem in facts.problems],
        documents=facts.documents,
        left_out=facts.documents_left_out,
    )


def describe_state(facts: Facts) -> str:
    """What is the matter with the subject, in a sentence; "" where nothing is."""
    subject = facts.subject
    if subject.removed:
        return f"Its content {subject.removed}. What follows is what its record says."
    if subject.state is None or subject.is_complete:
        return ""
    step = facts.curves.steps if facts.curves else 0
    sentence = f"Its run is {subject.state.state}"
    if subject.state.is_final:
        sentence = f"Its run ended as {subject.state.state}"
        code = subject.state.exit_code
        sentence += f" with exit code {code}" if code else ""
    reason = next(iter(subject.state.reason.splitlines()), "")
    sentence += f": {reason}." if reason else "."
    return sentence + (f" {step} steps are on record." if step else "")


def write_headline(facts: Facts) -> str:
    """How much better it is than what it came from, in a sentence; that nobody knows, else."""
    verdict = facts.verdict
    if verdict is None:
        return "Nothing was made, so there is nothing to judge."
    if verdict.conclusion is None:
        measured = any(one.reference is None for one in verdict.findings)
        return "Measured, but compared with nothing." if measured else "Not evaluated."
    others = [one.against for one in verdict.deciding if one.conclusion == verdict.conclusion]
    named = " and ".join(dict.fromkeys(filter(None, others)))
    than = f" than {named}" if named else ""
    return {
        BETTER: f"Better{than}.",
        WORSE: f"Worse{than}.",
        MIXED: "Better by one measure, worse by another.",
        OPEN: f"Neither better nor worse{than}, as far as was measured.",
    }[verdict.conclusion]


def _group_findings(findings: Sequence[Finding]) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Findings under what they were compared with and what measured them."""
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for one in findings:
        groups.setdefault((one.against, one.source), []).append(_write_finding(one))
    for (against, source), rows in groups.items():
        by = source or "the run itself, on held-out rows"
        yield (f"Against {against}, measured by {by}" if against else f"Measured by {by}"), rows


def _write_finding(finding: Finding) -> dict[str, Any]:
    """A finding in words: a rate in percent, a difference in points."""
    if finding.reference == 0.0:
        value = f"{100 * finding.value:+.1f} points"
        interval = f"{100 * finding.low:+.1f} to {100 * finding.high:+.1f}"
    else:
        value = percent(finding.value)
        interval = f"{percent(finding.low)} to {percent(finding.high)}"
    marks = {BETTER: "▲", WORSE: "▼", OPEN: "◆"}
    return {
        "measure": finding.measure,
        "value": value,
        "interval": interval,
        "detail": finding.detail,
        "conclusion": finding.conclusion,
        "mark": marks.get(finding.conclusion, "·"),
    }


def _draw_verdict(verdict: Verdict) -> Iterator[Markup]:
    """Rates of wins held to a half, and differences held to zero, each with its interval."""
    for reference, title, word in (
        (0.5, "Win rate in percent, with its 95% interval", "as good"),
        (0.0, "Difference in points, with its 95% interval", "no difference"),
    ):
        rows = [
            Interval(one.measure, *(round(100 * n, 1) for n in (one.value, one.low, one.high)))
            for one in verdict.findings
            if one.reference == reference
        ]
        if rows:
            yield draw_intervals(title, rows, reference=100 * reference, reference_name=word)


def _write_relative(relative: Relative) -> dict[str, Any]:
    """A comparison: keys that both have, and keys of one alone; files are counted, not listed."""
    keys = [one for one in relative.differences if not one.key.startswith("files[")]
    shown = sorted(keys, key=lambda one: one.key in ("digest", "kind"))[:MOST_DIFFERENCES]
    is_lone = [one.left is None or one.right is None for one in shown]
    rows = [_write_difference(one) for one in shown]
    return {
        "ref": relative.ref,
        "relation": relative.relation,
        "changed": [row for row, lone in zip(rows, is_lone, strict=True) if not lone],
        "lone": [row for row, lone in zip(rows, is_lone, strict=True) if lone],
        "files": len(relative.differences) - len(keys),
        "left_out": len(keys) - len(shown),
    }


def _write_difference(difference: Difference) -> dict[str, str]:
    return {
        "key": difference.key,
        "left": _write_value(difference.left),
        "right": _write_value(difference.right),
    }


def _write_tables(record: Record) -> Iterator[tuple[str, dict[str, str]]]:
    """Tables of the record as name and text, those that are not empty."""
    for name in _RECORD_TABLES:
        if values := flatten(getattr(record, name)):
            yield name, {key: _write_value(value) for key, value in values.items()}


def _write_attempt(attempt: Mapping[str, Any]) -> dict[str, Any]:
    started = attempt.get("started")
    return {
        "number": attempt["number"],
        "state": attempt["state"],
        "executor": attempt["executor"],
        "started": format_time(started) if started else "",
        "seconds": attempt.get("seconds"),
        "error": str(attempt.get("error", "")),
    }


def _write_value(value: object) -> str:
    if value is None:
        return "(absent)"
    text = str(value).lower() if isinstance(value, bool) else format_number(value)
    return text if len(text) <= 300 else text[:297] + "..."
