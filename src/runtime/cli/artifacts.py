"""``nemotron-style artifacts``: what is in the store, whence it came, and whether it is whole."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nemotron_style.runtime.cli.store_option import choose_store, open_store
from nemotron_style.runtime.cli.table import print_json, render_pairs, render_table
from nemotron_style.runtime.validation import flatten

if TYPE_CHECKING:
    from pathlib import Path

    from nemotron_style.runtime.errors import Problem
    from nemotron_style.runtime.store.record import Artifact, Record
    from nemotron_style.runtime.store.store import Store

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    help="Show, check, compare and adopt artifacts.",
)

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]
Ref = Annotated[str, typer.Argument(help="name, name:latest, name:v3 or sha256:<prefix>.")]


class Format(StrEnum):
    """What a lineage is printed as."""

    tree = "tree"
    json = "json"
    mermaid = "mermaid"
    dot = "dot"
    openlineage = "openlineage"


app.callback()(choose_store)


@app.command("list")
def list_artifacts(
    context: typer.Context,
    name: Annotated[str | None, typer.Argument(help="Only versions of this name.")] = None,
    *,
    kind: Annotated[str | None, typer.Option(help="Only artifacts of this kind.")] = None,
    as_json: Json = False,
) -> None:
    """List artifacts, the newest version of each name first."""
    found = [
        artifact
        for artifact in open_store(context).artifacts(name)
        if kind in (None, artifact.kind)
    ]
    if as_json:
        return print_json([_summary(artifact) for artifact in found])
    if not found:
        return print("no artifacts; run a step, or adopt something")
    header = ("REF", "KIND", "DIGEST", "SIZE", "CREATED", "MADE BY")
    print(render_table([_row(artifact) for artifact in found], header=header), end="")


@app.command()
def show(context: typer.Context, ref: Ref, *, as_json: Json = False) -> None:
    """Show everything that an artifact's record tells."""
    artifact = open_store(context).resolve(ref)
    record = artifact.record.model_dump(mode="json")
    if as_json:
        return print_json(record | {"ref": artifact.ref, "path": str(artifact.path)})
    inputs = [
        f"  {edge.slot}: {edge.ref}  {edge.kind}  {edge.digest}" for edge in artifact.record.inputs
    ]
    print(f"{artifact.ref}  {artifact.kind}\n{artifact.digest}\n{artifact.path}")
    print(f"{_describe(artifact)}\n{artifact.record.created}")
    _print_block("inputs", inputs)
    for field in ("config", "seeds", "metrics", "facts", "code", "environment", "hardware"):
        _print_block(field, _leaves(record[field]))
    print(f"files ({_human_size(artifact.record.size)}):")
    print(render_pairs((file.path, str(file.size)) for file in artifact.record.files), end="")


@app.command()
def lineage(
    context: typer.Context,
    ref: Ref,
    *,
    down: Annotated[bool, typer.Option("--down", help="What was made from it.")] = False,
    style: Annotated[Format, typer.Option("--format", help="How to print it.")] = Format.tree,
    as_json: Json = False,
) -> None:
    """Trace an artifact to everything it was made from."""
    from nemotron_style.runtime.store.lineage import walk
    from nemotron_style.runtime.store.lineage_text import render

    store = open_store(context)
    traced = walk(store, store.resolve(ref), down=down)
    # A lineage in another JSON dialect is one document already.
    chosen = "json" if as_json and style is not Format.openlineage else style.value
    print(render(traced, chosen))


@app.command()
def verify(
    context: typer.Context,
    ref: Annotated[str | None, typer.Argument(help="One artifact; all without it.")] = None,
    *,
    shallow: Annotated[
        bool, typer.Option("--shallow", help="Trust files whose size and time are unchanged.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Check that every byte is the one that was committed. Exits with 1 when one is not."""
    store = open_store(context)
    targets = [store.resolve(ref).path] if ref else list(store.committed())
    problems = [each for path in targets for each in _check(store, path, deep=not shallow)]
    if as_json:
        told = [problem.as_dict() for problem in problems]
        print_json({"checked": len(targets), "ok": not problems, "problems": told})
    else:
        for problem in problems:
            print(str(problem), file=sys.stderr)
        print(f"{len(targets)} checked, {len(problems)} problems")
    if problems:
        raise typer.Exit(1)


@app.command()
def adopt(
    context: typer.Context,
    path: Annotated[str, typer.Argument(help="A file, a directory or a URI.")],
    *,
    kind: Annotated[str, typer.Option(help="The kind of artifact that it is.")],
    name: Annotated[str, typer.Option(help="The name that it gets.")],
    as_json: Json = False,
) -> None:
    """Copy a file or directory into the store, to be used as an input."""
    from nemotron_style.runtime.catalog.kinds import load_kinds

    load_kinds()[kind]
    artifact = open_store(context).adopt(path, kind=kind, name=name)
    if as_json:
        return print_json(_summary(artifact))
    print(f"{artifact.ref}  {artifact.kind}  {artifact.digest}")


@app.command()
def diff(context: typer.Context, left: Ref, right: Ref, *, as_json: Json = False) -> None:
    """Show where two artifacts differ: files, inputs, config, code, figures."""
    from nemotron_style.runtime.store.diff import compare

    store = open_store(context)
    ours, theirs = store.resolve(left), store.resolve(right)
    differences = compare(ours, theirs)
    if as_json:
        told = [asdict(difference) for difference in differences]
        return print_json({"left": ours.ref, "right": theirs.ref, "differences": told})
    if not differences:
        return print("no difference")
    rows = [(each.key, _short_value(each.left), _short_value(each.right)) for each in differences]
    print(render_table(rows, header=("KEY", ours.ref, theirs.ref)), end="")


@app.command()
def gc(
    context: typer.Context,
    *,
    grace: Annotated[float, typer.Option(help="Leave alone what is younger, in hours.")] = 24.0,
    as_json: Json = False,
) -> None:
    """Finish commits that were cut off and remove what crashes left. Artifacts stay."""
    done = open_store(context).collect_garbage(grace_s=grace * 3600)
    if as_json:
        return print_json(asdict(done))
    for path in done.removed:
        print(f"removed {path}")
    for ref in done.finished:
        print(f"finished {ref}")
    print(f"{len(done.removed)} removed, {len(done.finished)} commits finished")


def _check(store: Store, path: Path, *, deep: bool) -> list[Problem]:
    return store.verify_path(path, deep=deep) or store.missing_keys(path)


def _summary(artifact: Artifact) -> dict[str, Any]:
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
    from nemotron_style.runtime.store.lineage_text import short

    record = artifact.record
    size, created = _human_size(record.size), record.created[:19].replace("T", " ")
    return artifact.ref, artifact.kind, short(artifact.digest), size, created, _made_by(record)


def _made_by(record: Record) -> str:
    if record.producer:
        return f"{record.producer.step}@{record.producer.config_name}"
    return "adopted" if record.origin else "-"


def _describe(artifact: Artifact) -> str:
    from nemotron_style.runtime.store.lineage import Node
    from nemotron_style.runtime.store.lineage_text import describe

    return describe(Node(artifact.ref, artifact.kind, artifact.digest, artifact))


def _leaves(values: dict[str, Any]) -> list[str]:
    return [f"  {key}: {_short_value(value)}" for key, value in flatten(values).items()]


def _short_value(value: Any) -> str:
    if value is None:
        return "-"
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else text[:77] + "..."


def _human_size(size: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} TB"


def _print_block(title: str, lines: list[str]) -> None:
    if lines:
        print("\n".join([f"{title}:", *lines]))
