"""From a ref to the artifact it names, by keys and directory names alone."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import replace
from itertools import islice
from pathlib import Path

from nemotron_style.runtime.errors import ArtifactError, NewerRecord, Problem, RefError, suggest
from nemotron_style.runtime.store.claim import noted_newest
from nemotron_style.runtime.store.commit import load_committed, read_decision
from nemotron_style.runtime.store.digest import RECORD_NAME
from nemotron_style.runtime.store.index import entries, read_digests, read_refs
from nemotron_style.runtime.store.layout import Layout, is_committed, versions_in
from nemotron_style.runtime.store.record import Artifact, Record, load_artifact
from nemotron_style.runtime.store.ref import (
    DigestRef,
    NamedRef,
    OutputRef,
    parse_ref,
    parse_version,
    strip_user,
)
from nemotron_style.runtime.store.roots.files import on_disk
from nemotron_style.runtime.store.tombstone import (
    Tombstone,
    find_tombstone,
    is_removed,
    removed_refs,
)

_SHOWN = 8
_LATE = 64  # so many versions may a listing of a bucket be behind
_LIST = "`nemotron-style artifacts list` shows what there is"


def resolve(layout: Layout, ref: str) -> Artifact:
    """The artifact that ``ref`` names; see :meth:`Store.resolve`."""
    parsed = parse_ref(ref)
    if isinstance(parsed, NamedRef):
        return _resolve_name(layout, parsed)
    if isinstance(parsed, DigestRef):
        return _resolve_digest(layout, parsed)
    artifact = output_of(layout, parsed.run_id, parsed.slot)
    if artifact is None:
        decided = decided_output(layout, parsed.run_id, parsed.slot)
        _reject_removed(find_tombstone(layout, decided.ref) if decided else None)
        raise _unknown(layout, ref, _outputs(layout, parsed))
    return artifact


def output_of(layout: Layout, run_id: str, slot: str) -> Artifact | None:
    """What a run committed from a slot; None when it did not, or not to the end."""
    decided = decided_output(layout, run_id, slot)
    # What stands at the decided version must be what was decided, not merely be called so.
    artifact = find(layout, decided.ref) if decided else None
    return artifact if artifact and artifact.record == decided else None


def explain_missing(layout: Layout, ref: str) -> str:
    """Why there is no artifact to be had under ``ref``: it was removed, or is not in the store."""
    try:
        parsed = parse_ref(ref)
        refs = read_refs(layout, ref) if isinstance(parsed, DigestRef) else []
        if isinstance(parsed, OutputRef):
            decided = decided_output(layout, parsed.run_id, parsed.slot)
            refs = [decided.ref] if decided else []
    except RefError:
        refs = []
    tombstones = filter(None, (find_tombstone(layout, each) for each in refs))
    removed = next(tombstones, None)
    return f"{removed.ref} {removed.describe()}" if removed else f"{ref} is not in the store"


def decided_output(layout: Layout, run_id: str, slot: str) -> Record | None:
    """The record that a run committed from a slot, whether its files are there or not.

    Raises NewerRecord: what is there must not be taken for missing.
    """
    try:
        return read_decision(layout, layout.output(run_id, slot))
    except NewerRecord:
        raise
    except (FileNotFoundError, ArtifactError):
        return None


def by_digest(layout: Layout, digest: str) -> list[Artifact]:
    """Every artifact with exactly this content, the first committed first."""
    artifacts = [find(layout, ref) for ref in read_refs(layout, digest)]
    same = (artifact for artifact in artifacts if artifact and artifact.digest == digest)
    return sorted(same, key=_age)


def find_adopted(
    layout: Layout, uri: str, kind: str, name: str, *, identity: str = ""
) -> Artifact | None:
    """The newest artifact of this kind and name that was adopted from a URI; asks the store only.

    With ``identity``, one that was adopted when the URI held exactly that.
    """
    for version in versions_in(layout.name(name)):
        artifact = find(layout, f"{name}:v{version}")
        origin = artifact.record.origin if artifact else None
        if artifact is None or origin is None or identity not in ("", origin.identity):
            continue
        if (artifact.kind, origin.source) == (kind, strip_user(uri)):
            return artifact
    return None


def find(layout: Layout, ref: str) -> Artifact | None:
    """The artifact ``name:v3``; None when it is not there, removed, or its record not readable."""
    if is_removed(layout, ref):
        return None
    try:
        return load_artifact(layout.place(ref))
    except (FileNotFoundError, ArtifactError, RefError):  # a key may have any name
        return None


def list_artifacts(
    layout: Layout, name: str | None, *, limit: int = 0
) -> tuple[list[Artifact], list[Problem], int]:
    """Artifacts that can be read, by name, the newest first; why others cannot be; how many more.

    With a ``limit`` no more are read than that: those that were committed last.
    """
    places, problems = list_places(layout, name)
    newest = choose_newest(places, limit)
    artifacts: list[Artifact] = []
    for place in newest:
        try:
            artifacts.append(load_artifact(place))
        except FileNotFoundError:  # no record, hence no artifact
            continue
        except ArtifactError as error:
            problems += error.problems
    return artifacts, problems, len(places) - len(newest)


def list_places(layout: Layout, name: str | None) -> tuple[list[Path], list[Problem]]:
    """Where versions stand, by name, the newest first, and which names cannot be listed."""
    places: list[Path] = []
    problems: list[Problem] = []
    names = [layout.name(name)] if name is not None else entries(layout.artifacts)
    removed = removed_refs(layout, name or "")
    for folder in names:
        try:
            versions = versions_in(folder)
        except OSError as error:
            what = f"cannot be read: {error.strerror}"
            problems.append(Problem(where=folder.name, what=what))
            continue
        kept = (each for each in versions if f"{folder.name}:v{each}" not in removed)
        places += [folder / f"v{version}" for version in kept]
    return places, problems


def choose_newest(places: list[Path], limit: int) -> list[Path]:
    """As many of the places as ``limit`` says (0: all) whose records were written last."""
    if not limit or len(places) <= limit:
        return places
    newest = sorted(range(len(places)), key=lambda index: _time_of(places[index]), reverse=True)
    return [places[index] for index in sorted(newest[:limit])]


def _time_of(place: Path) -> float:
    try:
        return (place / RECORD_NAME).stat().st_mtime
    except FileNotFoundError:  # no artifact
        return 0.0
    except OSError:  # it is to be named
        return math.inf


def _resolve_name(layout: Layout, ref: NamedRef) -> Artifact:
    directory = layout.name(ref.name)
    gone = {parse_version(each.partition(":")[2]) for each in removed_refs(layout, ref.name)}
    # Never an older version in the place of a removed one: `latest` does not go back.
    last = max((each for each in gone if each), default=0)
    numbers = [ref.version] if ref.version else _list_versions(layout, ref.name)
    for number in (each for each in numbers if each not in gone):
        if not ref.version and number < last:
            break
        if artifact := load_committed(directory / f"v{number}"):
            return artifact
    raise _no_version(layout, ref, gone, last)


def _no_version(layout: Layout, ref: NamedRef, gone: Collection[int | None], last: int) -> RefError:
    """Why there is no such version of a name, or no newest one; with those that there are."""
    directory = layout.name(ref.name)
    numbers = (each for each in _list_versions(layout, ref.name) if each not in gone)
    known = (each for each in numbers if is_committed(directory / f"v{each}"))
    shown = list(islice(known, _SHOWN + 1))
    allowed = ", ".join(f"v{number}" for number in shown[:_SHOWN])
    allowed += ", …" if len(shown) > _SHOWN else ""
    asked = ref.version or last
    if asked in gone:
        _reject_removed(find_tombstone(layout, f"{ref.name}:v{asked}"), allowed)
    if not shown:
        return _unknown(layout, ref.name, [entry.name for entry in entries(layout.artifacts)])
    what = "has no such version"
    return RefError(Problem(where=ref.name, what=what, got=f"v{asked}", allowed=allowed))


def _list_versions(layout: Layout, name: str) -> list[int]:
    """Numbers under which there may be artifacts of a name, the highest first.

    A listing of a bucket may be late; what was claimed last is read by its key.
    """
    listed = versions_in(layout.name(name))
    if on_disk(layout.root):
        return listed
    highest = max(listed, default=0)
    noted = min(noted_newest(layout, name) or 0, highest + _LATE)
    return [*range(noted, highest, -1), *listed]


def _reject_removed(tombstone: Tombstone | None, allowed: str = "") -> None:
    if tombstone:
        raise RefError(replace(tombstone.explain(), allowed=allowed))


def _resolve_digest(layout: Layout, ref: DigestRef) -> Artifact:
    # A key may stand without an artifact, after a commit that was cut off.
    digests = read_digests(layout, ref.prefix)
    known = {digest: artifacts for digest in digests if (artifacts := by_digest(layout, digest))}
    text = f"sha256:{ref.prefix}"
    if not known:
        refs = [each for digest in digests for each in read_refs(layout, digest)]
        _reject_removed(next(filter(None, (find_tombstone(layout, each) for each in refs)), None))
        what = "no artifact has a digest that begins so"
        raise RefError(Problem(what=what, got=text, fix=_LIST))
    if len(known) > 1:
        both = ", ".join(f"{each[0].ref} ({digest[:19]})" for digest, each in known.items())
        what, fix = "more than one digest begins so", "give more digits"
        raise RefError(Problem(what=what, got=text, allowed=both, fix=fix))
    (artifacts,) = known.values()
    return artifacts[0]


def _outputs(layout: Layout, ref: OutputRef) -> list[str]:
    runs = layout.index / "output"
    slots = [f"run:{ref.run_id}/{entry.name}" for entry in entries(runs / ref.run_id)]
    return slots or [f"run:{entry.name}/{ref.slot}" for entry in entries(runs)]


def _unknown(layout: Layout, ref: str, known: list[str]) -> RefError:
    # Of a wrong root, or a mount that is gone, its name says more than any command.
    is_empty = not entries(layout.artifacts)
    fix = f"there are no artifacts in {layout.root}" if is_empty else suggest(ref, known) or _LIST
    return RefError(Problem(what="no such artifact", got=repr(ref), fix=fix))


def _age(artifact: Artifact) -> tuple[str, str, int]:
    return artifact.record.created, artifact.record.name, artifact.record.version
