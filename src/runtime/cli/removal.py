"""``artifacts rm`` and ``gc``, ``runs rm``: what frees space. Nothing goes without ``--yes``."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict
from datetime import datetime
from functools import partial
from typing import Annotated, Any

import typer

from nemotron_style.runtime.cli.options import AsJson, open_store
from nemotron_style.runtime.cli.table import print_json, print_table
from nemotron_style.runtime.errors import Problem, UsageError, raise_all
from nemotron_style.runtime.run.listing import find_run
from nemotron_style.runtime.store.record import Record
from nemotron_style.runtime.store.removal import (
    Family,
    Removed,
    Selection,
    find_products,
    select,
)
from nemotron_style.runtime.store.roots.files import size_on_disk
from nemotron_style.runtime.store.store import Collected, Store
from nemotron_style.runtime.units import format_age, format_size

SHOWN = 8
Yes = Annotated[bool, typer.Option("--yes", help="Do it; without, only show what would go.")]


def rm(
    context: typer.Context,
    refs: Annotated[list[str], typer.Argument(metavar="REF...", help="What to remove.")],
    *,
    yes: Yes = False,
    as_json: AsJson = False,
) -> None:
    """Free the space of artifacts; their records stay, so that lineage still reads.

    Nothing goes that another artifact was made from, unless that goes too, nor what a run under
    way reads.
    """
    store, find_in_use = _open(context)
    wanted = list(dict.fromkeys(store.resolve(ref).ref for ref in refs))
    family = store.read_family()
    selection = select(family, wanted=wanted, keep=find_in_use())
    blocked = [ref for ref in wanted if ref in selection.staying]
    raise_all(UsageError, [_refuse(ref, family, selection) for ref in blocked])
    _carry_out(store, Selection(selection.going, {}), find_in_use, yes=yes, as_json=as_json)


def gc(
    context: typer.Context,
    *,
    keep: Annotated[
        list[str] | None,
        typer.Option(metavar="REF", help="Remove all but this and what it was made from."),
    ] = None,
    yes: Yes = False,
    grace: Annotated[float, typer.Option(help="Leave alone what is younger, in hours.")] = 24.0,
    as_json: AsJson = False,
) -> None:
    """Finish commits that were cut off, mend the index, remove what crashes and ended runs left.

    Artifacts stay. With --keep (once or more) all of them go but those that are kept, what these
    were made from, and what runs under way use; --yes does it.
    """
    if not 0 <= grace < math.inf:  # neither is NaN
        what, allowed = "is no number of hours", "0 or more"
        raise UsageError(Problem(key="--grace", what=what, got=str(grace), allowed=allowed))
    store, find_in_use = _open(context)
    if keep:
        kept = {store.resolve(ref).ref: "--keep" for ref in keep}
        family = store.read_family()
        selection = select(family, wanted=family.records, keep={**find_in_use(), **kept})
        _carry_out(store, selection, find_in_use, yes=yes, as_json=as_json)
    elif yes:
        what, fix = "says to remove what --keep does not keep", "give --keep REF"
        raise UsageError(Problem(key="--yes", what=what, fix=fix))
    else:
        _tidy_up(store, find_in_use, grace_s=grace * 3600, as_json=as_json)


def rm_runs(
    context: typer.Context,
    runs: Annotated[list[str], typer.Argument(metavar="RUN...", help="Which runs to remove.")],
    *,
    yes: Yes = False,
    as_json: AsJson = False,
) -> None:
    """Free the space of runs: logs, metrics, checkpoints, copies of the code.

    What they made stays, and the records of it, which hold the whole config. But a run that is
    gone cannot be resumed or repeated, and the same command runs it again.
    """
    from nemotron_style.runtime.launch.in_use import find_needed_runs
    from nemotron_style.runtime.launch.leftovers import remove_run

    store = open_store(context)
    chosen = {run.run_id: run for run in (find_run(store, word) for word in runs)}
    needed = find_needed_runs(store)
    what, fix = "stays", "wait for its end, or `nemotron-style runs cancel` it"
    raise_all(
        UsageError,
        [
            Problem(where=run_id, what=what, got=needed[run_id], fix=fix)
            for run_id in chosen
            if run_id in needed
        ],
    )
    sizes = {run_id: size_on_disk(run.path) for run_id, run in chosen.items()}
    rows = [(run_id, run.state, format_size(sizes[run_id])) for run_id, run in chosen.items()]
    gone = [run_id for run_id, run in chosen.items() if yes and remove_run(run, store)]
    kept = [run_id for run_id in chosen if yes and run_id not in gone]
    if as_json:
        print_json({"dry_run": not yes, "going": sizes, "removed": gone, "kept": kept})
    else:
        print_table(rows, header=("RUN", "STATE", "SIZE"))
        freed = format_size(sum(sizes[run_id] for run_id in (gone if yes else chosen)))
        done = f"{len(gone)} removed ({freed})"
        print(done if yes else f"{len(rows)} would go ({freed}); --yes removes them")
    for run_id in kept:
        print(f"{run_id} stays after all: it was begun again", file=sys.stderr)
    if kept:
        raise typer.Exit(1)


def _open(context: typer.Context) -> tuple[Store, Callable[[], Mapping[str, str]]]:
    from nemotron_style.runtime.launch.in_use import find_in_use

    store = open_store(context)
    return store, partial(find_in_use, store)


def _refuse(ref: str, family: Family, selection: Selection) -> Problem:
    """Why ``ref`` cannot go, and everything that was made from it and would have to go with it."""
    products = [each for each in find_products(family.parents, ref) if each in selection.staying]
    more = f" and {len(products) - SHOWN} more" if len(products) > SHOWN else ""
    with_it = ", ".join(products[:SHOWN]) + more
    fix = f"remove with it what was made from it, if nobody needs that: {with_it}"
    why = selection.staying[ref]
    return Problem(where=ref, what="stays", got=why, fix=fix if products else "")


def _carry_out(
    store: Store,
    selection: Selection,
    find_in_use: Callable[[], Mapping[str, str]],
    *,
    yes: bool,
    as_json: bool,
) -> None:
    places = {
        record.ref: store.layout.version(record.name, record.version) for record in selection.going
    }
    sizes = {ref: size_on_disk(place) for ref, place in places.items()}
    would_free = size_on_disk(*places.values())  # files that only these share are freed too
    done = store.remove(selection.going, find_in_use=find_in_use) if yes else Removed()
    if as_json:
        print_json(_as_data(selection, sizes, done, would_free, yes=yes))
    else:
        _print(selection, sizes, done, would_free, yes=yes)
    if done.kept or done.skipped:
        raise typer.Exit(1)


def _as_data(
    selection: Selection, sizes: Mapping[str, int], done: Removed, would_free: int, *, yes: bool
) -> dict[str, Any]:
    going = [
        {"ref": record.ref, "kind": record.kind, "size": sizes[record.ref]}
        for record in selection.going
    ]
    plan = {"dry_run": not yes, "going": going, "staying": selection.staying}
    return plan | {"would_free": would_free} | asdict(done)


def _print(
    selection: Selection, sizes: Mapping[str, int], done: Removed, would_free: int, *, yes: bool
) -> None:
    rows = [_row(record, sizes[record.ref]) for record in selection.going]
    rows += [(ref, "", "", "", f"stays: {why}") for ref, why in sorted(selection.staying.items())]
    print_table(rows, header=("REF", "KIND", "SIZE", "AGE", "WHAT"), optional=("KIND", "AGE"))
    stay = f", {len(selection.staying)} stay" if selection.staying else ""
    if not yes:
        freed = format_size(would_free)
        print(f"{len(rows) - len(selection.staying)} would go ({freed}){stay}; --yes removes them")
        return
    for ref, why in done.kept.items():
        print(f"{ref} stays after all: {why}", file=sys.stderr)
    for line in done.skipped:
        print(f"skipped {line}", file=sys.stderr)
    print(f"{len(done.removed)} removed ({format_size(done.freed)}){stay}; their records stay")


def _row(record: Record, size: int) -> tuple[str, ...]:
    age = format_age(datetime.fromisoformat(record.created).timestamp())
    return record.ref, record.kind, format_size(size), age, "goes"


def _tidy_up(
    store: Store,
    find_in_use: Callable[[], Mapping[str, str]],
    *,
    grace_s: float,
    as_json: bool,
) -> None:
    from nemotron_style.runtime.launch.leftovers import collect_copies, collect_leftovers

    # What needs no room first: on a full disk, commits can be finished only after that.
    done = collect_leftovers(store.local, grace_s=grace_s)
    done.add(store.collect_garbage(grace_s=grace_s))
    done.add(collect_copies(store, find_in_use(), grace_s=grace_s) if store.url else Collected())
    rest = store.finish_removals(find_in_use=find_in_use)
    done.add(Collected(freed=rest.freed, finished=rest.removed, skipped=rest.skipped))
    if as_json:
        return print_json(asdict(done))
    for path in done.removed:
        print(f"removed {path}")
    for ref in done.finished:
        print(f"finished {ref}")
    for line in done.skipped:
        print(f"skipped {line}", file=sys.stderr)
    removed = f"{len(done.removed)} removed ({format_size(done.freed)})"
    once = f"; equal files stored once save {format_size(done.shared)}" if done.shared else ""
    mended = f"{len(done.finished)} finished, {done.keys_written} keys written again"
    print(f"{removed}, {mended}{once}")
