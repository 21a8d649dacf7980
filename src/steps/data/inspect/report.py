"""What was found, as a page to read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from nemotron_style.steps.blocks.data.markdown_table import markdown_table
from nemotron_style.steps.data.inspect.inspection import (
    PERCENTILES,
    SHOWN,
    Inspection,
    percentiles,
)
from nemotron_style.steps.data.inspect.rendering import CLOSE, OPEN, mark


def write_report(found: Inspection, name: str) -> str:
    """The page about a file called ``name``, in Markdown."""
    return "\n".join([f"# {name}", "", *_counts(found), *_lengths(found), *_rows(found)]) + "\n"


def _counts(found: Inspection) -> Iterator[str]:
    report = found.report
    good = report.rows - report.bad
    layouts = ", ".join(report.layouts) or "none"
    yield f"* layout: {layouts}, read for {found.use}" + _other_uses(found)
    yield f"* rows: {report.rows:,}; {good:,} are read, {report.bad:,} are refused"
    if report.unused:
        unused = ", ".join(f"{name} ({count:,})" for name, count in sorted(report.unused.items()))
        yield f"* not used: {unused}"
    yield f"* repeated rows: {len(found.repeats):,}; other rows with a repeated prompt: " + (
        f"{found.repeated_prompts:,}"
    )
    if found.limit is not None and found.tokens:
        yield f"* longer than {found.limit:,} tokens: {len(found.too_long):,}"


def _other_uses(found: Inspection) -> str:
    others = [use for use in found.uses if use != found.use]
    return f" (also possible: {', '.join(others)})" if others else ""


def _lengths(found: Inspection) -> Iterator[str]:
    rows = {
        "characters": found.characters,
        "tokens": found.tokens,
        "tokens that are trained": found.trained if any(found.trained) else [],
        "turns": found.turns,
    }
    cells = [
        [name, *(f"{number:,}" for number in percentiles(numbers).values())]
        for name, numbers in rows.items()
        if numbers
    ]
    if cells:
        names = {0: "least", 50: "median", 100: "most"}
        heads = [names.get(share, f"{share}%") for share in PERCENTILES]
        yield from ("", "## Lengths of a row", "", *markdown_table(["", *heads], cells))


def _first_of(count: int) -> str:
    """How many of ``count`` are shown, where those are not all."""
    return f": the first {SHOWN} of {count:,}" if count > SHOWN else f": {count}"


def _rows(found: Inspection) -> Iterator[str]:
    if found.report.problems:
        yield from ("", f"## Refused{_first_of(found.report.bad)}", "")
        yield from (f"* {problem}" for problem in found.report.problems[:SHOWN])
    if found.repeats:
        yield from ("", f"## Repeated{_first_of(len(found.repeats))}", "")
        yield from (f"* row {row:,} is row {first:,}" for row, first in found.repeats[:SHOWN])
    if found.too_long:
        yield from ("", f"## Too long{_first_of(len(found.too_long))}", "")
        yield "* rows " + ", ".join(map(str, found.too_long[:SHOWN]))
    if found.shown:
        trained = any(piece.trained for row in found.shown for side in row for piece in side)
        what = f"; what is trained stands in {OPEN}{CLOSE}" if trained else ""
        yield from ("", f"## The first rows{what}")
    for number, sides in enumerate(found.shown, start=1):
        for index, pieces in enumerate(sides):
            side = f", {('chosen', 'rejected')[index]}" if len(sides) > 1 else ""
            text = mark(pieces)
            fence = _fence(text)
            yield from ("", f"### Row {number}{side}", "", fence, *text.split("\n"), fence)


def _fence(text: str) -> str:
    """A fence that the text does not hold."""
    fence = "```"
    while fence in text:
        fence += "`"
    return fence


def summarise(found: Inspection) -> dict[str, int]:
    """The figures of a run."""
    figures = {
        "rows": found.report.rows,
        "refused_rows": found.report.bad,
        "repeated_rows": len(found.repeats),
    }
    lengths: dict[str, Sequence[int]] = {"tokens": found.tokens, "characters": found.characters}
    for name, numbers in lengths.items():
        if numbers:
            figures[f"median_{name}"] = percentiles(numbers)["50"]
    return figures
