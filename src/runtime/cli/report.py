"""``nemotron-style report``: one artifact or run as one HTML file, to show and to hand on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from nemotron_style.runtime.atomic import write_text
from nemotron_style.runtime.cli.options import AsJson, open_store
from nemotron_style.runtime.cli.table import print_json, print_problems, print_table
from nemotron_style.runtime.errors import Problem, UsageError
from nemotron_style.runtime.paths import show_path
from nemotron_style.runtime.store.audit import is_store
from nemotron_style.runtime.store.store import Store

app = typer.Typer(add_completion=False, rich_markup_mode=None)
ENDINGS = (".html", ".htm")


@app.command(
    epilog="""\b
Examples:
  nemotron-style report sft-steerlm2-tiny:v1
  nemotron-style report latest -o run.html
  nemotron-style report --compare sft-chat-tiny:v1 sft-chat-tiny:v2
  nemotron-style report --store
  nemotron-style artifacts verify run.html      are its records those of the store?""",
)
def report(
    context: typer.Context,
    words: Annotated[
        list[str] | None,
        typer.Argument(metavar="REF|RUN...", help="An artifact's ref, a run's id, or latest."),
    ] = None,
    *,
    compare: Annotated[
        bool, typer.Option("--compare", help="Lay two to eight of them side by side.")
    ] = False,
    whole: Annotated[
        bool, typer.Option("--store", help="Write an index of the whole store, by family.")
    ] = False,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="The file; else NAME.html, here.")
    ] = None,
    profile: Annotated[
        str | None, typer.Option("--profile", "-p", help="Use this profile's store.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Write one HTML file about an artifact or a run: verdict, answers, curves, lineage, records.

    It needs no network and no server, and finds by itself whether its records were changed. With
    --compare it lays several side by side; with --store it is an index of all there is.
    """
    context.obj = profile
    chosen: list[str] = words or []
    told: dict[str, Any] = {}
    if whole:
        reject_words(chosen, compare=compare)
        path, problems = write_catalogue(open_store(context), output)
    elif compare:
        path, problems, told = write_comparison(open_store(context), chosen, output)
    else:
        path, problems = write_report(open_store(context), choose_word(chosen), output)
    print_problems(problems, label="note")
    if as_json:
        notes = [problem.as_dict() for problem in problems]
        size = path.stat().st_size
        print_json({"report": str(path), "bytes": size, "problems": notes, **told})
    else:
        print(show_path(path))


def choose_word(words: Sequence[str]) -> str:
    """The one subject of a report; raises UsageError for none and for several."""
    if len(words) == 1:
        return words[0]
    what, got = "a report is about one artifact or run", " ".join(words) or "none"
    fix = "nemotron-style artifacts list, and runs list, name them"
    fix = "with --compare it is about several" if words else fix
    raise UsageError(Problem(where="report", what=what, got=got, fix=fix))


def reject_words(words: Sequence[str], *, compare: bool) -> None:
    """Raise UsageError where the index of a store is asked for together with something else."""
    got = " ".join([*words, *(["--compare"] if compare else [])])
    if got:
        what, fix = "an index is about the whole store", "leave out one or the other"
        raise UsageError(Problem(where="--store", what=what, got=got, fix=fix))


def write_catalogue(store: Store, output: Path | None) -> tuple[Path, list[Problem]]:
    """Write the index of a store; its path, and what could not be read for it."""
    from nemotron_style.runtime.report.catalogue import collect_catalogue, render_catalogue

    path = choose_file(output, "store")
    catalogue = collect_catalogue(store)
    write_page(path, render_catalogue(catalogue))
    return path, catalogue.problems


def write_comparison(
    store: Store, words: Sequence[str], output: Path | None
) -> tuple[Path, list[Problem], dict[str, Any]]:
    """Write the comparison of what ``words`` name; its path, problems, and what it says as data."""
    from nemotron_style.runtime.report.comparison.compare import (
        as_data,
        compare_subjects,
        render_comparison,
    )

    path = choose_file(output, "comparison")
    comparison = compare_subjects(store, words)
    write_page(path, render_comparison(comparison))
    return path, list(comparison.problems), {"comparison": as_data(comparison)}


def write_report(store: Store, word: str, output: Path | None) -> tuple[Path, list[Problem]]:
    """Write the report of what ``word`` names; its path, and what could not be read for it."""
    from nemotron_style.runtime.report.collect import collect_facts
    from nemotron_style.runtime.report.document import render_report
    from nemotron_style.runtime.report.subject import find_subject

    subject = find_subject(store, word)
    path = choose_file(output, subject.name)
    record = None if subject.removed else subject.record
    evaluations = list(suggest_evaluations(record.kind, record.ref)) if record else []
    facts = collect_facts(store, subject)
    write_page(path, render_report(facts, suggestions=evaluations))
    return path, facts.problems


def choose_file(output: Path | None, name: str) -> Path:
    """Where a page goes: the given file, or one called after ``name`` in the given folder or here.

    Raises UsageError for a file without an ending, which no browser would open.
    """
    own = name.replace(":", "-") + ENDINGS[0]
    path = Path(own) if output is None else output / own if output.is_dir() else output
    if path.suffix.lower() not in ENDINGS:
        what, fix = "is not called like a page", f"call it {path.name}{ENDINGS[0]}"
        raise UsageError(Problem(where="-o", what=what, got=str(path), fix=fix))
    return path.absolute()


def write_page(path: Path, text: str) -> None:
    """Write a page at once, or not at all; raises UsageError where that cannot be."""
    try:
        write_text(path, text, durable=False)
    except OSError as error:
        what, fix = f"cannot be written: {error.strerror or error}", "choose another with -o"
        raise UsageError(Problem(where=show_path(path), what=what, fix=fix)) from None


def suggest_evaluations(kind: str, ref: str) -> Iterator[tuple[str, str]]:
    """Commands that would measure an artifact, each with the step that does."""
    from nemotron_style.runtime.catalog.catalog import load_catalog

    catalog = load_catalog()
    for step in catalog.consumers(kind):
        slot = next((slot for slot in step.consumes if slot.name == "model"), None)
        if step.category == "eval" and slot and catalog.kinds.accepts(slot.kind, kind):
            config = " -c tiny" if "-tiny" in ref and "tiny" in step.configs else ""
            yield step.id, f"nemotron-style steps run {step.id}{config} -i model={ref}"


def is_report(word: str) -> bool:
    """Whether a word names a report on disk rather than an artifact, whose name may end alike."""
    return word.lower().endswith(ENDINGS) and ("/" in word or Path(word).is_file())


def verify_report(path: Path, store: Store, *, as_json: bool) -> None:
    """Say of each part of a report whether it is the store's; exit with 1 when one is not."""
    from nemotron_style.runtime.report.page.check import check_report

    if not is_store(store.layout):
        what, fix = "there is no store here", "is it mounted?"
        raise UsageError(Problem(where=str(store.root), what=what, fix=fix))
    checks = check_report(path, store)
    wrong = [check for check in checks if not check.is_fine]
    if as_json:
        parts = [asdict(check) for check in checks]
        print_json({"checked": len(checks), "ok": not wrong, "parts": parts})
    else:
        rows = [(check.name, check.kind, check.state, check.detail) for check in checks]
        print_table(rows, header=("OF", "WHAT", "STATE", "DETAIL"), optional=("WHAT",))
        print(f"{len(checks)} checked, {len(wrong)} problems")
    if wrong:
        raise typer.Exit(1)
