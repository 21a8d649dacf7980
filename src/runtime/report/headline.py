"""What a report says first: how much better something is than what it came from, or that nobody
knows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from nemotron_style.runtime.report.subject import Subject
from nemotron_style.runtime.report.verdict import (
    BETTER,
    EVALUATION,
    MEASURED,
    MIXED,
    OPEN,
    WORSE,
    Finding,
    Verdict,
    find_parent,
    percent,
)
from nemotron_style.runtime.store.record import Record
from nemotron_style.runtime.units import format_number

MOST_SENTENCES = 3


@dataclass(frozen=True)
class Headline:
    """The verdict in a few words, its ``conclusion`` where there is one, and by how much."""

    text: str
    conclusion: str
    sentences: tuple[str, ...]


def write_headline(
    subject: Subject, verdict: Verdict | None, *, can_be_evaluated: bool
) -> Headline:
    """What is known of how good a subject is; ``can_be_evaluated`` says that some step could tell.

    It never says more than the intervals do.
    """
    record = subject.record
    if verdict is None or record is None:
        return Headline("Nothing was made, so there is nothing to judge.", "", ())
    conclusion = verdict.conclusion
    if conclusion is None:
        return _write_unknown(record, verdict, can_be_evaluated=can_be_evaluated)
    sentences = tuple(map(write_finding, _pick(verdict)))
    return Headline(_write_conclusion(record, verdict, conclusion), conclusion, sentences)


def write_finding(finding: Finding) -> str:
    """A finding as a sentence, with its interval and with what it is held to."""
    value, interval = show_value(finding), show_interval(finding)
    measure = finding.measure[:1].upper() + finding.measure[1:]
    if finding.reference == 0.0:
        detail = f"; {finding.detail}" if finding.detail else ""
        over = f" over {finding.against}" if finding.against else ""
        return f"{measure}: {value}{over} (95% interval {interval}{detail})."
    word = " of matches" if finding.reference == 0.5 else ""
    against = f" against {finding.against}" if finding.against else ""
    return f"{measure}: {value}{word}{against} (95% interval {interval})."


def show_value(finding: Finding) -> str:
    """A rate in percent, a difference of rates in points, anything else as a number."""
    if not finding.is_share:
        return _show_number(finding.value, signed=finding.reference == 0.0)
    if finding.reference == 0.0:
        return f"{100 * finding.value:+.1f} points"
    return percent(finding.value)


def show_interval(finding: Finding) -> str:
    """The ends of a finding's interval, as its value is written."""
    ends = (finding.low, finding.high)
    if not finding.is_share:
        return " to ".join(_show_number(end, signed=finding.reference == 0.0) for end in ends)
    if finding.reference == 0.0:
        return " to ".join(f"{100 * end:+.1f}" for end in ends)
    return " to ".join(map(percent, ends))


def _show_number(value: float, *, signed: bool) -> str:
    """A measured number in three digits: an interval is never known better."""
    text = format_number(float(f"{value:.3g}"))
    return f"+{text}" if signed and value > 0 else text


def name_doubts(verdict: Verdict) -> str:
    """By which measures something is better, where it is not known by all of them; else ""."""
    unsure = [one for one in verdict.deciding if one.conclusion == OPEN]
    said = [one for one in verdict.deciding if one.conclusion == BETTER]
    return f" by {_list(said)}; by {_list(unsure)} that is not known" if unsure else ""


def _write_conclusion(record: Record, verdict: Verdict, conclusion: str) -> str:
    said = [one for one in verdict.deciding if one.conclusion == conclusion]
    named = " and ".join(dict.fromkeys(filter(None, (one.against for one in said))))
    than = f" than {named}" if named else ""
    whose = "{}"
    if record.kind == EVALUATION:
        model = next((edge.ref for edge in record.inputs if edge.slot == "model"), "the model")
        whose = f"{model} is {{}}"
    better, worse = (whose.format(word) for word in ("better", "worse"))
    if conclusion == BETTER:
        text = f"{better}{than}{name_doubts(verdict)}."
    else:
        text = {
            WORSE: f"{worse}{than}.",
            MIXED: f"{better} by one measure, worse by another.",
            OPEN: f"{whose.format('neither better nor worse')}{than}, as far as was measured.",
        }[conclusion]
    return text if record.kind == EVALUATION else text[0].upper() + text[1:]


def _write_unknown(record: Record, verdict: Verdict, *, can_be_evaluated: bool) -> Headline:
    parent = find_parent(record)
    unknown = f"Whether it is better than {parent} is not known." if parent else ""
    measured = [one for one in verdict.findings if one.conclusion == MEASURED]
    if measured:
        sentences = (*map(write_finding, measured[:MOST_SENTENCES]), unknown)
        return Headline("Measured, but compared with nothing.", "", tuple(filter(None, sentences)))
    if can_be_evaluated:
        return Headline("Not evaluated.", "", (unknown,) if unknown else ())
    sentence = f"No step here evaluates {record.kind}"
    sentence += (
        "; what was made with it can be."
        if not record.metrics
        else (", so only what its own run measured is known.")
    )
    return Headline("How good it is cannot be said.", "", (sentence,))


def _pick(verdict: Verdict) -> Iterator[Finding]:
    """The first finding of each source, whatever contradicts it, and what the truth says."""
    seen: set[tuple[str, str]] = set()
    conclusions: set[str] = set()
    chosen: list[Finding] = []
    for one in verdict.deciding:
        place = (one.against, one.source)
        is_news = place not in seen or one.conclusion not in conclusions
        if is_news or "truth" in one.measure:
            chosen.append(one)
        seen.add(place)
        conclusions.add(one.conclusion)
    yield from chosen[:MOST_SENTENCES]


def _list(findings: Sequence[Finding]) -> str:
    return " and ".join(dict.fromkeys(one.measure for one in findings))
