"""Whether the store as a whole still holds what was decided.

A record stands twice: in the artifact's directory, and in the index under the key at which its
commit was decided (:func:`key_of`). Whatever one copy has lost the other one tells. All other
keys follow from the record, so each that is missing and each that is too many can be named.
Nothing here writes; ``artifacts gc`` mends what can be mended.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from nemotron_style.runtime.atomic import read_json
from nemotron_style.runtime.errors import ArtifactError, NewerRecord, Problem
from nemotron_style.runtime.store.commit import MEND, read_decision
from nemotron_style.runtime.store.index import (
    entries,
    is_plain_key,
    key_of,
    keys_of,
    read_times,
)
from nemotron_style.runtime.store.layout import Layout, is_committed
from nemotron_style.runtime.store.record import (
    RESTORE,
    Artifact,
    Record,
    load_artifact,
    read_record,
)
from nemotron_style.runtime.store.ref import from_key, to_key
from nemotron_style.runtime.store.roots.files import files_under, lexists
from nemotron_style.runtime.store.tombstone import is_removed, removed_records

DECISIONS = ("output", "adopted", "made")
KEYS = ("digest", "up", "down")
_COMMIT_S = 600.0  # a commit that began less than so many seconds ago may be at work


@dataclass(frozen=True)
class Decision:
    """A key of the index under which a commit was decided; ``problem`` when it cannot be used."""

    key: Path
    record: Record | None
    problem: Problem | None = None


def is_store(layout: Layout) -> bool:
    """Whether there is a store at all, be it empty: something was once written in the root."""
    return any(each.is_dir() for each in (layout.artifacts, layout.index, layout.runs))


def read_decisions(layout: Layout) -> Iterator[Decision]:
    """Every key under which something was decided, with the record that it holds."""
    for key in files_under(*(layout.index / folder for folder in DECISIONS)):
        try:
            yield Decision(key, read_decision(layout, key))
        except FileNotFoundError:  # its writer replaced it at this moment, or it is a broken link
            yield Decision(key, None, _problem(layout, key, "cannot be read", RESTORE))
        except ArtifactError as error:
            yield Decision(key, None, error.problems[0])


@dataclass(frozen=True)
class Index:
    """The keys that are there, those that the ``known`` records ask for, and what is left over.

    ``known`` are the records of all decisions, artifacts and tombstones that can be read, by ref.
    """

    decisions: list[Decision]
    known: dict[str, Record]
    present: list[Path]
    expected: set[Path]
    strays: list[Path]


def read_index(layout: Layout) -> Index:
    """The index as it stands beside the artifacts."""
    present = list(files_under(*(layout.index / folder for folder in KEYS)))
    times = list(files_under(layout.index / "times"))
    decisions = list(read_decisions(layout))  # after the keys: a commit decides before it adds any
    decided = (each.record for each in decisions if each.record)
    there = (*decided, *removed_records(layout), *committed_records(layout))
    known = {record.ref: record for record in there}
    expected = {key for record in known.values() for key in keys_of(layout, record)}
    places = {layout.times(ref) for ref in known}
    strays = [key for key in present if key not in expected]
    strays += [each for each in times if each not in places]
    return Index(decisions, known, present, expected, strays)


def directories_of(layout: Layout) -> Iterator[Path]:
    """Every directory in which a version stands, or may stand under a wrong name.

    What cannot be listed is passed over; :func:`unlisted` names it.
    """
    for name in entries(layout.artifacts):
        with suppress(ArtifactError):
            yield from (each for each in entries(name) if not each.name.startswith("."))


def unlisted(layout: Layout) -> Iterator[Problem]:
    """The names whose versions cannot be listed, each with the reason."""
    for name in entries(layout.artifacts):
        try:
            entries(name)
        except ArtifactError as error:
            yield from error.problems


def check_directory(layout: Layout, directory: Path) -> list[Problem]:
    """What is wrong with the place of a committed version and with its keys; not with its files."""
    for place in (directory, directory.parent):
        if place.is_symlink():
            what, fix = "is a link in the place of a directory", "put the directory itself there"
            return [_problem(layout, place, what, fix)]
    record = load_artifact(directory).record
    keys = [*keys_of(layout, record), layout.claims(record.name) / f"v{record.version}"]
    texts = [key_of(layout, record), layout.times(record.ref)]
    missing = [key for key in keys if not lexists(key)]
    missing += [key for key in texts if not key.is_file()]
    problems = [(key, "is missing", MEND) for key in missing]
    for key in keys:
        if key not in missing and not is_plain_key(key):
            # What is in it may be a file of an artifact, so nothing removes it.
            fix = f"move it elsewhere, then {MEND}"
            problems.append((key, "is not the empty file that it was", fix))
    if texts[1] not in missing and not fits_times(layout, record):
        problems.append((texts[1], "is not what was written", MEND))
    return [
        Problem(where=record.ref, key=layout.show(key), what=what, fix=fix)
        for key, what, fix in problems
    ]


def fits_times(layout: Layout, record: Record) -> bool:
    """Whether the noted sizes are those of the record, file by file."""
    sizes = {path: size for path, (size, _time) in read_times(layout, record.ref).items()}
    return sizes == {file.path: file.size for file in record.files}


def check_index(layout: Layout) -> list[Problem]:
    """Decisions without their artifact, keys that cannot be used, and keys too many."""
    index = read_index(layout)
    problems = [each.problem for each in index.decisions if each.problem]
    problems += unlisted(layout)
    for decision in index.decisions:
        problems += _check_decided(layout, decision.record) if decision.record else []
    unread = {to_key(ref) for ref in _unreadable(layout)}
    for key in index.strays:
        if _owner_of(layout, key) in unread:
            continue  # its record is what is named
        fix = MEND if is_refuted(layout, key, index.known) else RESTORE
        problems.append(_problem(layout, key, "belongs to no artifact that is there", fix))
    problems += _check_undecided(layout, index.known)
    problems += _check_runs(layout, index.known)
    return problems


def committed_records(layout: Layout) -> Iterator[Record]:
    """The records of all artifacts that stand in their places and can be read."""
    for directory in directories_of(layout):
        if (artifact := read_committed(directory)) is not None:
            yield artifact.record


def read_committed(directory: Path) -> Artifact | None:
    """The artifact of this very directory; None when there is none that can be read."""
    try:
        return load_artifact(directory)
    except (FileNotFoundError, ArtifactError):
        return None


def is_refuted(layout: Layout, key: Path, known: Iterable[str]) -> bool:
    """Whether a key that no record asks for is a mistake, not the trace of a lost artifact.

    It is one when its artifact is there and has other keys, or when its number was never claimed.
    """
    name = _owner_of(layout, key)
    if from_key(name) in known:
        return True
    artifact, _, version = name.partition("@")
    return not (layout.artifacts / artifact / ".claims" / version).is_file()


def is_newer(path: Path) -> bool:
    """Whether a file holds a record of a later schema: whole, and not ours to change."""
    try:
        read_record(path)
    except NewerRecord:
        return True
    except (FileNotFoundError, ArtifactError):
        return False
    return False


def _unreadable(layout: Layout) -> Iterator[str]:
    """The refs of what stands in its place with a record that cannot be read."""
    for directory in directories_of(layout):
        if is_committed(directory) and read_committed(directory) is None:
            yield f"{directory.parent.name}:{directory.name}"


def _owner_of(layout: Layout, key: Path) -> str:
    """Of which artifact a key is, as it is written in keys."""
    return key.parent.name if key.is_relative_to(layout.index / "up") else key.name.split("~")[-1]


def _check_decided(layout: Layout, record: Record) -> list[Problem]:
    directory = layout.version(record.name, record.version)
    artifact = read_committed(directory)
    if artifact and artifact.record != record:
        what = f"says something else than {layout.show(key_of(layout, record))}"
        return [Problem(where=record.ref, key=directory.name, what=what, fix=MEND)]
    if is_committed(directory) or is_removed(layout, record.ref):
        return []  # an unreadable record is reported with its directory
    intent = layout.intent(key_of(layout, record), record.ref)
    # Looked at once more: a commit drops its intent when it has written the record.
    if _age(intent) < _COMMIT_S or is_committed(directory):
        return []
    if directory.is_dir():
        # Between decision and record its commit was cut off, or the record was lost later.
        what, fix = "was decided and has no record", MEND
    else:
        what, fix = "was committed and is gone", RESTORE
    return [Problem(where=record.ref, what=what, fix=fix)]


def _age(intent: Path) -> float:
    """Seconds since a commit began; without an intent it has long ended."""
    try:
        return time.time() - intent.stat().st_mtime
    except FileNotFoundError:
        return math.inf


def _check_undecided(layout: Layout, known: Iterable[str]) -> Iterator[Problem]:
    """Directories without a record of which neither a decision nor an intent says what they are."""
    for directory in directories_of(layout):
        ref = f"{directory.parent.name}:{directory.name}"
        if is_committed(directory) or ref in known:
            continue
        intents = entries(layout.index / "intent")
        intended = any(each.name.partition("~")[2] == to_key(ref) for each in intents)
        # An intent stands from before the directory until after the record.
        if not intended and directory.exists() and not is_committed(directory):
            what = "holds no artifact, and no commit is known that began it"
            yield _problem(layout, directory, what, "move it elsewhere, or restore its record")


def _check_runs(layout: Layout, known: Mapping[str, Record]) -> Iterator[Problem]:
    """What complete runs say that they committed, and neither artifacts nor index know."""
    for run in entries(layout.runs):
        outputs = (read_json(run / "outputs.json") or {}).get("outputs", {})
        for slot, output in outputs.items():
            record = known.get(output["ref"])
            if record is None or record.digest != output["digest"]:
                what = f"run {run.name} committed it from {slot}, and it is gone"
                yield Problem(where=output["ref"], what=what, fix=RESTORE)


def _problem(layout: Layout, path: Path, what: str, fix: str) -> Problem:
    return Problem(where=layout.show(path), what=what, fix=fix)
