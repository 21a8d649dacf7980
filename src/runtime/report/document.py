"""The report of one artifact or run as one HTML file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from markupsafe import Markup

from nemotron_style.runtime.report.collect import Facts, Relative
from nemotron_style.runtime.report.comparison.differences import DIGEST
from nemotron_style.runtime.report.drawing.curves import SHOWN
from nemotron_style.runtime.report.drawing.family import draw_family
from nemotron_style.runtime.report.findings import draw_findings
from nemotron_style.runtime.report.headline import write_headline
from nemotron_style.runtime.report.page.embed import render_sealed
from nemotron_style.runtime.report.verdict import Finding, find_parent
from nemotron_style.runtime.store.diff import Difference
from nemotron_style.runtime.store.lineage.text import describe_maker
from nemotron_style.runtime.store.record import Record
from nemotron_style.runtime.units import format_number, format_size, format_time
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
        headline=write_headline(subject, facts.verdict, can_be_evaluated=bool(suggestions)),
        origin=describe_origin(record) if record else "",
        groups=list(_group_findings(facts.verdict.findings)) if facts.verdict else [],
        changes=facts.verdict.changes if facts.verdict else (),
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


def describe_origin(record: Record) -> str:
    """In a sentence what it is and from what it was made; the other inputs are told elsewhere."""
    parent = find_parent(record)
    if record.producer is None:
        maker = describe_maker(record)
        return f"{maker[0].upper()}{maker[1:]}."
    made = f"Made by {record.producer.step}"
    if parent:
        return f"{made} from {parent}."
    inputs = [edge.ref for edge in record.inputs]
    more = f" and {len(inputs) - 2} more" if len(inputs) > 2 else ""
    return f"{made} from {', '.join(inputs[:2])}{more}." if inputs else f"{made} from nothing else."


def _group_findings(findings: Sequence[Finding]) -> Iterator[dict[str, Any]]:
    """Findings under what they were compared with and what measured them."""
    groups: dict[tuple[str, str, float | None, bool], list[Finding]] = {}
    for one in findings:
        groups.setdefault((one.against, one.source, one.reference, one.is_share), []).append(one)
    for (against, source, _, _), rows in groups.items():
        by = source or "the run itself, on held-out rows"
        title = f"Against {against}, measured by {by}" if against else f"Measured by {by}"
        yield draw_findings(title, rows)


def _write_relative(relative: Relative) -> dict[str, Any]:
    """A comparison: keys that both have, and keys of one alone; files are counted, not listed."""
    keys = [one for one in relative.differences if not one.key.startswith("files[")]
    # What both have says most: where there is no room for all, keys of one alone are left out.
    keys.sort(key=lambda one: (_is_lone(one), one.key in ("digest", "kind")))
    shown = keys[:MOST_DIFFERENCES]
    lone = [one for one in shown if _is_lone(one)]
    changed = shown[: len(shown) - len(lone)]
    counts = Counter(_name_group(one) for one in changed)
    return {
        "ref": relative.ref,
        "relation": relative.relation,
        "counts": ", ".join(f"{name} {count}" for name, count in counts.items()),
        "changed": _group_differences(changed),
        "lone": _group_differences(lone),
        "lone_count": len(lone),
        "files": len(relative.differences) - len(keys),
        "left_out": len(keys) - len(shown),
    }


def _is_lone(difference: Difference) -> bool:
    """Whether one of the two does not have the key."""
    return difference.left is None or difference.right is None


def _group_differences(found: Sequence[Difference]) -> dict[str, list[dict[str, str]]]:
    """Rows by what they belong to: config, inputs, code, environment, metrics."""
    groups: dict[str, list[dict[str, str]]] = {}
    for one in found:
        group = _name_group(one)
        groups.setdefault(group, []).append(
            {
                "key": one.key.removeprefix(f"{group}."),
                "left": _shorten_digests(_write_value(one.left)),
                "right": _shorten_digests(_write_value(one.right)),
            }
        )
    return groups


def _name_group(difference: Difference) -> str:
    head, dot, _ = difference.key.partition(".")
    return head if dot else "record"


def _shorten_digests(text: str) -> str:
    """A value with the beginning of each digest: enough for a person to tell two apart."""
    return DIGEST.sub(lambda found: f"{found[0][:-52]}…", text)


def _write_tables(record: Record) -> Iterator[tuple[str, dict[str, str]]]:
    """Tables of the record as name and text, those that are not empty."""
    for name in _RECORD_TABLES:
        if values := flatten(getattr(record, name)):
            yield name, {key: _write_fact(key, value) for key, value in values.items()}


def _write_fact(key: str, value: object) -> str:
    """A value of the environment: memory in a unit that people read, an empty list as none."""
    if key == "memory" and isinstance(value, int):
        return format_size(value)
    return "none" if value == [] else _write_value(value)


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
