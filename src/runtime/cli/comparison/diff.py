"""``nemotron-style artifacts diff``: why two artifacts differ, and in what."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from typing import Any

import typer

from nemotron_style.runtime.catalog.kinds import load_kinds
from nemotron_style.runtime.cli.comparison.content import (
    describe_findings,
    find_content_differences,
    render_findings,
)
from nemotron_style.runtime.cli.completion import Ref
from nemotron_style.runtime.cli.options import AsJson, open_store
from nemotron_style.runtime.cli.table import PAGE, emphasise, print_json, print_table
from nemotron_style.runtime.cli.terminal import one_line
from nemotron_style.runtime.errors import shorten
from nemotron_style.runtime.run.code_difference import FileChange, compare_code, find_sources
from nemotron_style.runtime.run.folder import RunFolder
from nemotron_style.runtime.store.diff import Difference, compare, compare_content
from nemotron_style.runtime.store.record import Artifact
from nemotron_style.runtime.store.store import Store
from nemotron_style.runtime.units import format_number

SECTIONS = {
    "Made by": ("step", "config_name", "rerun_of", "origin", "kind"),
    "Config": ("config", "seeds"),
    "Inputs": ("inputs",),
    "Code": ("code",),
    "Environment and hardware": ("environment", "hardware"),
    "Metrics": ("metrics",),
    "Facts": ("facts",),
}
WIDTH = 28  # of a value
DIGEST = re.compile(r"(sha256:[0-9a-f]{8})[0-9a-f]{56}")  # a few digits tell one from another
MOST_FACTS = 15
SOURCES = ("run:", "sha256:")  # begin the value of a key of the config that an input is bound to
MOST_CODE_LINES = 60


app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command(
    epilog="\b\nExample:\n  nemotron-style artifacts diff sft-chat-tiny:v1 sft-chat-tiny:v2"
)
def diff(context: typer.Context, left: Ref, right: Ref, *, as_json: AsJson = False) -> None:
    """Show why two artifacts differ (config, inputs, code, environment), and in what.

    What came of it are metrics, rows of data, tensors of checkpoints, and other files.
    """
    store, kinds = open_store(context), load_kinds()
    ours, theirs = store.resolve(left), store.resolve(right)
    differences = compare(ours, theirs)
    findings = find_content_differences(ours, theirs, store=store, kinds=kinds)
    code = find_code_changes(differences, store, ours, theirs)
    if as_json:
        return print_json(
            {
                "left": ours.ref,
                "right": theirs.ref,
                "bit_identical": ours.digest == theirs.digest,
                "differences": [asdict(difference) for difference in differences],
                "code": [asdict(change) for change in code] if code is not None else None,
                "content": describe_findings(findings),
            }
        )
    print(f"{ours.ref} -> {theirs.ref}")
    print(compare_content(ours, theirs) if differences else "no difference: the records are equal")
    for title, sections in SECTIONS.items():
        chosen = [each for each in differences if each.section in sections]
        print_section(title, list(drop_repeated(chosen, differences)), ours, theirs)
        if title == "Code" and chosen:
            print("\n".join(render_code(code)))
    if findings:
        print(f"\n{emphasise('Content')}")
        for line in render_findings(findings):
            print(one_line(line))


def find_code_changes(
    differences: Sequence[Difference], store: Store, left: Artifact, right: Artifact
) -> list[FileChange] | None:
    """The files of the code that differ; None where the code of one of the two is not at hand."""
    if not any(each.key == "code.digest" for each in differences):
        return []
    producers = [artifact.record.producer for artifact in (left, right)]
    runs = [RunFolder(store.local / "runs" / producer.run_id) for producer in producers if producer]
    sources = [found for run in runs if (found := find_sources(run)) is not None]
    return compare_code(*sources, plan=runs[0].plan) if len(sources) == 2 else None


def drop_repeated(
    chosen: Iterable[Difference], differences: Sequence[Difference]
) -> Iterator[Difference]:
    """Without what is shown elsewhere: seeds of the config, facts that are metrics, inputs."""
    keys = {each.key for each in differences}
    shown_as = {"seeds": "config", "facts": "metrics"}
    for each in chosen:
        name = each.key.removeprefix(f"{each.section}.")
        is_input = each.section == "config" and _names_input(each.left, each.right)
        if not is_input and f"{shown_as.get(each.section)}.{name}" not in keys:
            yield each


def _names_input(*values: Any) -> bool:
    return all(str(value).startswith(SOURCES) for value in values)


def print_section(
    title: str, differences: Sequence[Difference], left: Artifact, right: Artifact
) -> None:
    """Print the keys of one part of the records that differ, numbers with their change."""
    if not differences:
        return
    print(f"\n{emphasise(title)}")
    shown = differences[:MOST_FACTS] if title == "Facts" else differences
    with_change = any(describe_change(each) for each in shown) and title in ("Metrics", "Facts")
    rows = []
    for each in shown:
        prefix = f"{each.section}."
        row = [f"  {each.key.removeprefix(prefix)}", show_value(each.left), show_value(each.right)]
        rows.append([*row, describe_change(each)] if with_change else row)
    header = ["  KEY", left.ref, right.ref, *(["CHANGE"] if with_change else [])]
    print_table(rows, header=[shorten(cell, WIDTH) for cell in header])
    if len(differences) > len(shown):
        print(f"  and {len(differences) - len(shown)} more: --json has all")


def describe_change(difference: Difference) -> str:
    """``+0.012 (+3.1%)`` for two numbers, empty for anything else."""
    left, right = difference.left, difference.right
    if not all(type(side) in (int, float) and math.isfinite(side) for side in (left, right)):
        return ""
    change = f"{right - left:+.4g}"
    return f"{change} ({(right - left) / abs(left):+.1%})" if left else change


def show_value(value: Any) -> str:
    """A value of a record in a column of a table."""
    if value is None:
        return "-"
    if type(value) is float:
        return format_number(value)
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    text = DIGEST.sub(r"\1", text)
    return text.replace(" sha256:", " ") if " sha256:" in text else shorten(text, WIDTH)


def render_code(changes: Sequence[FileChange] | None) -> Iterator[str]:
    """The files that differ, then their unified diffs, as far as there is room."""
    if changes is None:
        yield "  which files: not known, the code of one of the two is not at hand"
        return
    for change in changes:
        added, removed = change.lines
        where = "" if change.left and change.right else f"only {'left' if change.left else 'right'}"
        yield f"  {change.name}  " + (where or f"+{added} -{removed} lines")
    lines = [line for change in changes for line in change.diff.splitlines()]
    for line in lines[:MOST_CODE_LINES]:
        yield f"    {one_line(shorten(line, PAGE - 6))}"
    if len(lines) > MOST_CODE_LINES:
        yield f"    and {len(lines) - MOST_CODE_LINES} more lines: --json has all"
