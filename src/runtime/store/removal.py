"""Free the space of artifacts that nobody needs any more.

What another artifact was made from stays as long as that one does, and so does what a run under way
reads. The order of a removal is the promise:

1. a tombstone in ``index/removing`` for each artifact, products before what they were made from:
   from now on nobody finds them;
2. look again whether a run reads one, or something was made from it meanwhile: a run first writes
   its plan and then looks for its inputs, so one of the two sees the other. What is needed after
   all is given back, by removing its tombstone;
3. rename each other tombstone to ``index/removed``: it is decided;
4. rename the artifact's directory to the staging area, and remove it there.

Killed before 3, it leaves a whole artifact that is hidden; after 3, a tombstone. Either way the
next ``artifacts rm`` or ``artifacts gc`` goes on from 2.
"""

from __future__ import annotations

import getpass
import os
import re
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from nemotron_style.runtime import atomic
from nemotron_style.runtime.errors import ArtifactError, Problem, StepsError, raise_all
from nemotron_style.runtime.process import identify_process, is_dead
from nemotron_style.runtime.store.audit import committed_records, directories_of, read_committed
from nemotron_style.runtime.store.digest import RECORD_NAME
from nemotron_style.runtime.store.index import entries, read_edges
from nemotron_style.runtime.store.layout import Layout, is_committed
from nemotron_style.runtime.store.record import Record, read_record
from nemotron_style.runtime.store.ref import from_key, to_key
from nemotron_style.runtime.store.roots import files
from nemotron_style.runtime.store.staged.share import forget_files
from nemotron_style.runtime.store.tombstone import (
    Tombstone,
    find_tombstone,
    is_removed,
    removed_refs,
    render_tombstone,
)

Reasons = Mapping[str, str]
"""Why an artifact stays, by its ref."""

_ASIDE = re.compile(r"(?P<what>removed-[^@]+@v\d+)-\w+")
_REMOVAL_S = 600.0  # the owner of a tombstone that is this old and undecided is taken for gone


@dataclass(frozen=True)
class Family:
    """Everything in a store that was made from something: records and parents, by ref.

    ``unknown`` is what is there and cannot be read, or is being committed, with the reason: it
    stays, and so do its parents as far as the index knows them.
    """

    records: dict[str, Record] = field(default_factory=dict)
    parents: dict[str, set[str]] = field(default_factory=dict)
    unknown: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Selection:
    """What goes, products before what they were made from, and why each other artifact stays."""

    going: tuple[Record, ...]
    staying: dict[str, str]


@dataclass
class Removed:
    """What was removed and the bytes that are free again; what was given back, or left, and why."""

    removed: list[str] = field(default_factory=list)
    freed: int = 0
    kept: dict[str, str] = field(default_factory=dict)
    skipped: list[str] = field(default_factory=list)


def read_family(layout: Layout) -> Family:
    """The artifacts of a store and what each was made from."""
    family = Family()
    for directory in directories_of(layout):
        ref = f"{directory.parent.name}:{directory.name}"
        if not is_committed(directory) or is_removed(layout, ref):
            continue
        if artifact := read_committed(directory):
            family.records[ref] = artifact.record
        else:
            family.unknown[ref] = "its record cannot be read"
    for intent in entries(layout.index / "intent"):
        ref = from_key(intent.name.partition("~")[2])
        if ref not in family.records:
            family.unknown[ref] = "it is being committed"
        with suppress(FileNotFoundError, ArtifactError):
            family.parents.setdefault(ref, set()).update(e.ref for e in read_record(intent).inputs)
    for ref, record in family.records.items():
        family.parents.setdefault(ref, set()).update(edge.ref for edge in record.inputs)
        for _slot, child in read_edges(layout, "down", record.digest, ref):
            family.parents.setdefault(child, set()).add(ref)
    return family


def select(family: Family, *, wanted: Collection[str], keep: Reasons) -> Selection:
    """Of the ``wanted`` refs, those that can go: neither kept nor needed by anything that stays.

    ``keep`` are refs that must stay, each with the reason; everything not wanted stays anyway.
    """
    roots = {ref: "" for ref in (*family.records, *family.unknown) if ref not in wanted}
    staying = find_needed(family.parents, {**roots, **family.unknown, **keep})
    names = set(wanted) & family.records.keys() - staying.keys()
    going = [family.records[ref] for ref in _products_first(names, family.parents)]
    return Selection(tuple(going), {ref: staying[ref] for ref in staying if ref in family.records})


def find_needed(parents: Mapping[str, Collection[str]], roots: Reasons) -> dict[str, str]:
    """The roots and everything that they were made from, each with the reason why it is needed."""
    needed = dict(roots)
    pending = list(roots)
    while pending:
        child = pending.pop()
        for parent in sorted(parents.get(child, ())):
            if not needed.get(parent):
                if parent not in needed:
                    pending.append(parent)
                needed[parent] = f"{child} was made from it"
    return needed


def find_products(parents: Mapping[str, Collection[str]], ref: str) -> list[str]:
    """Everything that was made from ``ref``, directly or by way of others."""
    products: dict[str, None] = {}
    pending = [ref]
    while pending:
        source = pending.pop()
        fresh = [child for child, of in parents.items() if source in of and child not in products]
        products |= dict.fromkeys(fresh)
        pending += fresh
    return sorted(products)


def remove(
    layout: Layout, going: Collection[Record], *, find_in_use: Callable[[], Reasons]
) -> Removed:
    """Remove artifacts, products before what they were made from (the order of a Selection).

    ``find_in_use`` tells what runs under way read, by ref. Raises ArtifactError, and nothing is
    removed, when one of them is not ours to remove.
    """
    raise_all(ArtifactError, [one for record in going for one in _check_rights(layout, record)])
    by = f"{getpass.getuser()}@{os.uname().nodename}"
    owner = identify_process(os.getpid())
    failed = Removed()
    for record in going:
        at = datetime.now(UTC).isoformat(timespec="seconds")
        text = render_tombstone(Tombstone(record, by, at, owner))
        with _naming(failed, record.ref):
            if not is_removed(layout, record.ref):
                files.create_text(layout.removing(record.ref), text, scratch=layout.staging)
        if failed.skipped:  # a full disk: what is hidden already makes room for the others
            break
    done = finish_removals(layout, find_in_use=find_in_use)
    done.skipped += failed.skipped
    return done


def finish_removals(layout: Layout, *, find_in_use: Callable[[], Reasons]) -> Removed:
    """Do the rest of all removals that this process began, or a dead one (steps 2 to 4)."""
    done = Removed()
    undecided = [ref for ref in _refs_in(layout.index / "removing") if _is_ours(layout, ref)]
    if undecided:
        needed = _find_needed_again(layout, undecided, find_in_use())
        for ref in undecided:
            with suppress(FileNotFoundError):  # another process was faster
                if ref in needed:
                    layout.removing(ref).unlink()
                    done.kept[ref] = needed[ref]
                else:
                    files.move_text(layout.removing(ref), layout.removed(ref))
                    done.removed.append(ref)
        files.sync(layout.index / "removing")
        if done.removed:
            files.sync(layout.index / "removed")
    there = {f"{each.parent.name}:{each.name}" for each in directories_of(layout)}
    for ref in (each for each in _refs_in(layout.index / "removed") if each in there):
        with _naming(done, ref):
            _put_aside(layout, ref, done)
    for aside in entries(layout.staging):
        if match := _ASIDE.fullmatch(aside.name):
            own = atomic.unique_path(layout.staging, match["what"])
            with suppress(FileNotFoundError):  # of several that tidy up, one gets it
                os.rename(aside, own)
                size = files.size_on_disk(own)
                atomic.remove_tree(own)
                done.freed += size - files.size_on_disk(own)
                if own.exists():
                    done.skipped.append(f"{layout.show(own)}: cannot be removed")
    gone = (each.record for ref in done.removed if (each := find_tombstone(layout, ref)))
    with _naming(done, "index/file"):
        forget_files(layout, gone, partial(committed_records, layout))
    return done


def unfinished_removals(layout: Layout) -> Iterator[Problem]:
    """Removals that were cut off, and tombstones that cannot be read."""
    for ref in sorted(removed_refs(layout)):
        tombstone = find_tombstone(layout, ref)
        place = layout.root / "artifacts" / to_key(ref).replace("@", "/")
        if tombstone is None:
            what, fix = "its tombstone cannot be read", "restore it from a copy of the store"
            yield Problem(where=ref, what=what, fix=fix)
        elif place.is_dir() and _is_ours(layout, ref, tombstone):
            what, fix = "its removal was cut off", "`nemotron-style artifacts gc` finishes it"
            yield Problem(where=ref, what=what, fix=fix)


def _products_first(refs: Collection[str], parents: Mapping[str, Collection[str]]) -> list[str]:
    """The refs in an order in which each comes before everything that it was made from."""
    order: list[str] = []
    met: set[str] = set()
    for ref in sorted(refs):
        stack = [(ref, False)]
        while stack:  # depth first, without recursion: chains may be a thousand long
            child, are_parents_done = stack.pop()
            if are_parents_done:
                order.append(child)
            elif child not in met:
                met.add(child)
                stack.append((child, True))
                stack += [(each, False) for each in parents.get(child, ()) if each in refs]
    return order[::-1]


def _find_needed_again(layout: Layout, refs: Collection[str], in_use: Reasons) -> dict[str, str]:
    """Of the hidden ``refs``, those that something needs that is there by now."""
    family = read_family(layout)
    for ref in refs:
        if tombstone := find_tombstone(layout, ref):
            record = tombstone.record
            family.parents.setdefault(ref, set()).update(edge.ref for edge in record.inputs)
            for _slot, child in read_edges(layout, "down", record.digest, ref):
                family.parents.setdefault(child, set()).add(ref)
    there = dict.fromkeys((*family.records, *family.unknown), "")
    needed = find_needed(family.parents, {**there, **in_use})
    return {ref: needed[ref] for ref in refs if ref in needed}


def _check_rights(layout: Layout, record: Record) -> list[Problem]:
    directory = layout.version(record.name, record.version)
    if not files.on_disk(directory):
        return []  # the bucket says so when it is asked to
    places = [each for each in (directory, directory.parent) if each.exists()]
    locked = [each for each in places if not os.access(each, os.W_OK)]
    what, fix = "is not yours to remove", "ask its owner"
    return [Problem(where=record.ref, what=what, got=str(each), fix=fix) for each in locked]


def _refs_in(folder: Path) -> list[str]:
    return [from_key(entry.name) for entry in entries(folder)]


def _is_ours(layout: Layout, ref: str, tombstone: Tombstone | None = None) -> bool:
    """Whether to go on with a removal: this process began it, or nobody is at it any more."""
    tombstone = tombstone or find_tombstone(layout, ref)
    if tombstone is None:
        return False
    if tombstone.owner == identify_process(os.getpid()) or is_dead(tombstone.owner):
        return True
    return time.time() - datetime.fromisoformat(tombstone.at).timestamp() > _REMOVAL_S


def _put_aside(layout: Layout, ref: str, done: Removed) -> None:
    """Take the directory of a removed artifact from its place (step 4)."""
    directory = layout.place(ref)
    with suppress(FileNotFoundError):
        hint = f"removed-{to_key(ref)}"
        size = files.size_on_disk(directory)
        if files.remove_visible(directory, layout.staging, hint, first=RECORD_NAME) is None:
            done.freed += size
        files.sync(directory.parent)
        if ref not in done.removed:
            done.removed.append(ref)


@contextmanager
def _naming(done: Removed, ref: str) -> Iterator[None]:
    """Note what cannot be done with one artifact, and go on with the next."""
    try:
        yield
    except (OSError, StepsError) as error:
        done.skipped.append(f"{ref}: {error}")
