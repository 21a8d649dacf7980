"""What was measured of one of the compared against another of them.

Nothing says more about two models than an evaluation in which they met. Such findings stand first.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from nemotron_style.runtime.report.headline import name_doubts, write_finding
from nemotron_style.runtime.report.subject import Subject
from nemotron_style.runtime.report.verdict import BETTER, MIXED, OPEN, Finding, Verdict


@dataclass(frozen=True)
class Meeting:
    """Findings of one of the compared against another, by their letters, and what measured them;
    all of them are held to the same reference."""

    letter: str
    other: str
    source: str
    findings: tuple[Finding, ...]

    @property
    def verdict(self) -> Verdict:
        """What the findings say together."""
        return Verdict(self.findings, (), ())

    @property
    def conclusion(self) -> str:
        """``better``, ``worse``, ``mixed``, ``open``, or "" where nothing decides."""
        return self.verdict.conclusion or ""


def find_meetings(
    subjects: Sequence[Subject], verdicts: Sequence[Verdict | None], letters: str
) -> list[Meeting]:
    """The findings of each against each other, by what measured them."""
    known = {subject.name: letter for subject, letter in zip(subjects, letters, strict=True)}
    groups: dict[tuple[str, str, str, float | None, bool], list[Finding]] = {}
    for letter, verdict in zip(letters, verdicts, strict=True):
        for one in verdict.findings if verdict else ():
            if one.against in known and known[one.against] != letter:
                key = (letter, known[one.against], one.source, one.reference, one.is_share)
                groups.setdefault(key, []).append(one)
    return [Meeting(*key[:3], tuple(found)) for key, found in groups.items()]


def tell_meetings(meetings: Sequence[Meeting]) -> Iterator[str]:
    """Who is better than whom, and by how much; a sentence for each two of them."""
    told: set[tuple[str, str]] = set()
    for one in meetings:
        if (one.letter, one.other) in told or not one.conclusion:
            continue
        told.add((one.letter, one.other))
        yield _tell(one)


def _tell(meeting: Meeting) -> str:
    letter, other, conclusion = meeting.letter, meeting.other, meeting.conclusion
    if conclusion == MIXED:
        return f"{letter} is better than {other} by one measure, worse by another."
    first = next(each for each in meeting.findings if each.conclusion == conclusion)
    sentence = write_finding(first).replace(f" {first.against} ", f" {other} ")
    said = "is neither better nor worse" if conclusion == OPEN else f"is {conclusion}"
    doubts = ", as far as was measured" if conclusion == OPEN else ""
    doubts = name_doubts(meeting.verdict) if conclusion == BETTER else doubts
    return f"{letter} {said} than {other}{doubts}. {sentence}"
