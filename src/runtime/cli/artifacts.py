"""``nemotron-style artifacts``: what is in the store, what made it, and whether it is whole."""

from __future__ import annotations

import json
import sys
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from nemotron_style.runtime.atomic import write_text
from nemotron_style.runtime.catalog.kinds import load_kinds
from nemotron_style.runtime.cli.completion import Ref, complete_kind
from nemotron_style.runtime.cli.options import (
    AsJson,
    Limit,
    choose_limit,
    choose_store,
    command_group,
    open_store,
    print_more,
)
from nemotron_style.runtime.cli.removal import gc, rm
from nemotron_style.runtime.cli.report import is_report, verify_report
from nemotron_style.runtime.cli.table import print_json, print_problems, print_table, render_pairs
from nemotron_style.runtime.cli.terminal import escape_json
from nemotron_style.runtime.control_characters import show_controls
from nemotron_style.runtime.errors import RefError
from nemotron_style.runtime.store.lineage.formats import JSON, render
from nemotron_style.runtime.store.lineage.graph import walk
from nemotron_style.runtime.store.lineage.text import describe_maker, short
from nemotron_style.runtime.store.record import Artifact
from nemotron_style.runtime.store.store import Store
from nemotron_style.runtime.store.tombstone import Tombstone
from nemotron_style.runtime.units import format_age, format_number, format_size
from nemotron_style.runtime.validation import flatten

app = command_group(
    "Show, check, compare, adopt and remove artifacts.",
    lazy={"diff": "nemotron_style.runtime.cli.comparison.diff:app"},
)
app.callback()(choose_store)
app.command()(rm)
app.command()(gc)

FIELDS = ("config", "seeds", "metrics", "facts", "code", "environment", "hardware")


class Format(StrEnum):
    """What a lineage is told in."""

    tree = "tree"
    json = "json"
    mermaid = "mermaid"
    dot = "dot"
    openlineage = "openlineage"
    ro_crate = "ro-crate"


@app.command("list")
def list_artifacts(
    context: typer.Context,
    name: Annotated[str | None, typer.Argument(help="Only versions of this name.")] = None,
    *,
    kind: Annotated[
        str | None,
        typer.Option(help="Only artifacts of this kind.", autocompletion=complete_kind),
    ] = None,
    limit: Limit = None,
    as_json: AsJson = False,
) -> None:
    """List artifacts, the newest version of each name first; without --limit, the newest 50."""
    most = choose_limit(limit, as_json=as_json or kind is not None)
    store = open_store(context)
    artifacts, problems, more = store.list_artifacts(name, limit=most)
    listed = [each for each in artifacts if kind in (None, each.kind)]
    print_problems(problems, label="left out")
    if kind and not listed:
        load_kinds()[kind]  # refuses a slip; kinds of another project may be listed
    if as_json:
        return print_json([_summarise(artifact) for artifact in listed])
    if not listed:
        of_kind = f" of kind {kind}" if kind else ""
        return print(f"no artifacts{of_kind} in {store.root}; run a step, or adopt something")
    header = ("REF", "KIND", "DIGEST", "SIZE", "AGE", "MADE BY")
    rows = [_row(artifact) for artifact in listed]
    print_table(rows, header=header, optional=("DIGEST", "MADE BY"))
    print_more(more, "artifacts")


@app.command()
def show(context: typer.Context, ref: Ref, *, as_json: AsJson = False) -> None:
    """Show everything that an artifact's record says, also of one that was removed."""
    artifact = _find(open_store(context), ref)
    record = artifact.record.model_dump(mode="json")
    is_removed = isinstance(artifact, Tombstone)
    place = artifact.describe() if isinstance(artifact, Tombstone) else str(artifact.path)
    if as_json:
        return print_json(
            record | {"ref": artifact.ref, "removed" if is_removed else "path": place}
        )
    inputs = {
        edge.slot: f"{edge.ref}  {edge.kind}  {edge.digest}" for edge in artifact.record.inputs
    }
    files = {file.path: format_size(file.size) for file in artifact.record.files}
    print(f"{artifact.ref}  {artifact.record.kind}\n{artifact.record.digest}\n{place}")
    print(f"{describe_maker(artifact.record)}\n{artifact.record.created}")
    sections = {"inputs": inputs, **{field: _flatten(record[field]) for field in FIELDS}}
    sections["metrics"] = {key: format_number(n) for key, n in record["metrics"].items()}
    sections[f"files ({format_size(artifact.record.size)})"] = files
    for title, values in sections.items():
        if values:
            print(f"{title}:\n{render_pairs(values.items())}", end="")


@app.command()
def lineage(
    context: typer.Context,
    ref: Ref,
    *,
    down: Annotated[bool, typer.Option("--down", help="What was made from it.")] = False,
    depth: Annotated[
        int | None, typer.Option(metavar="N", min=0, help="Follow at most so many edges.")
    ] = None,
    style: Annotated[
        Format, typer.Option("--format", "-f", help="How to tell it.", case_sensitive=False)
    ] = Format.tree,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="Write it there.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Trace an artifact to everything it was made from."""
    store = open_store(context)
    graph = walk(store, _find(store, ref), down=down, depth=depth)
    chosen = style.value if style.value in JSON or not as_json else "json"
    text = render(graph, chosen)
    text = escape_json(text) if chosen in JSON else text
    if output is None:
        print(text)
    else:
        # As on the screen: a file, too, is shown by programs that obey control characters.
        write_text(output, show_controls(text) + "\n")


@app.command()
def verify(
    context: typer.Context,
    ref: Annotated[
        str | None, typer.Argument(help="One artifact, or a report (.html); all without it.")
    ] = None,
    *,
    shallow: Annotated[
        bool, typer.Option("--shallow", help="Trust files whose size and time are unchanged.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Check that every artifact and its keys are as they were committed, else exit with 1.

    Of a report: whether its records are those of the store.
    """
    store = open_store(context)
    if ref is not None and is_report(ref):
        return verify_report(Path(ref), store, as_json=as_json)
    if ref is not None:  # an empty one is an unset variable, and not "everything"
        path = store.resolve(ref).path
        checked, problems = 1, store.verify_path(path, deep=not shallow) or store.check_keys(path)
    else:
        checked, problems = store.verify_all(deep=not shallow)
    if as_json:
        described = [problem.as_dict() for problem in problems]
        print_json({"checked": checked, "ok": not problems, "problems": described})
    else:
        for problem in problems:
            print(problem, file=sys.stderr)
        how = "checked by size and time" if shallow else "checked"
        print(f"{checked} {how}, {len(problems)} problems")
    if problems:
        raise typer.Exit(1)


@app.command()
def adopt(
    context: typer.Context,
    path: Annotated[str, typer.Argument(help="A file, a directory or a URI.")],
    *,
    kind: Annotated[str, typer.Option(help="The kind of artifact that it is.")],
    name: Annotated[str, typer.Option(help="The name that it gets.")],
    reference: Annotated[
        bool, typer.Option("--reference", help="Do not copy it: it stays, unchanged, where it is.")
    ] = False,
    copy: Annotated[
        bool, typer.Option("--copy", help="Copy large files too, instead of linking them.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Bring a file or directory into the store, to be used as an input.

    A large file on the store's disk is not copied: it gets a second name there, and is read-only
    from then on.
    """
    from nemotron_style.runtime.catalog.content_kind import check_kind
    from nemotron_style.runtime.store.adoption.bring import Ways

    check_kind(Path(path), kind, load_kinds())
    ways, how = Ways(), {"reference": reference, "link": not copy}
    artifact = open_store(context).adopt(path, kind=kind, name=name, ways=ways, **how)
    if as_json:
        return print_json({**_summarise(artifact), "ways": ways.bytes, "shared": ways.shared})
    print(f"{artifact.ref}  {artifact.kind}  {artifact.digest}")
    print(ways.describe() or "was there already")


def _summarise(artifact: Artifact) -> dict[str, Any]:
    record = artifact.record
    return {
        "ref": artifact.ref,
        "kind": artifact.kind,
        "digest": artifact.digest,
        "size": record.size,
        "files": len(record.files),
        "created": record.created,
        "run_id": record.producer.run_id if record.producer else None,
        "step": record.producer.step if record.producer else None,
        "path": str(artifact.path),
    }


def _row(artifact: Artifact) -> tuple[str, ...]:
    record = artifact.record
    made_by = "adopted" if record.origin else "-"
    if record.producer:
        made_by = f"{record.producer.step}@{record.producer.config_name}"
    age = format_age(datetime.fromisoformat(record.created).timestamp())
    size = format_size(record.size)
    return artifact.ref, artifact.kind, short(artifact.digest), size, age, made_by


def _find(store: Store, ref: str) -> Artifact | Tombstone:
    """What ``ref`` names; for a version that was removed, what its tombstone says."""
    try:
        return store.resolve(ref)
    except RefError:
        if tombstone := store.tombstone(ref):
            return tombstone
        raise


def _flatten(values: dict[str, Any]) -> dict[str, str]:
    return {key: _shorten(value) for key, value in flatten(values).items()}


def _shorten(value: Any) -> str:
    if value is None:
        return "-"
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else text[:77] + "..."
