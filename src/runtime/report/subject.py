"""What a report is about: an artifact, also one that was removed, or a run, also a failed one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from nemotron_style.runtime.errors import ArtifactError, RefError, StepsError
from nemotron_style.runtime.run.folder import RunFolder
from nemotron_style.runtime.run.kept_run import find_kept, read_outputs
from nemotron_style.runtime.run.listing import find_run
from nemotron_style.runtime.run.plan import Plan
from nemotron_style.runtime.run.state import COMPLETED, JobState
from nemotron_style.runtime.store.record import Artifact, Record
from nemotron_style.runtime.store.store import Store
from nemotron_style.runtime.store.tombstone import Tombstone


@dataclass(frozen=True)
class Subject:
    """An artifact and the run that made it, each as far as it is known; at least one of them is.

    ``plan`` is None where the run, or its plan, cannot be read. ``kept`` has the plan of a run
    of another machine, where the store is a bucket.
    """

    made: Artifact | Tombstone | None
    run: RunFolder | None
    plan: Plan | None
    state: JobState | None
    others: tuple[str, ...] = ()
    kept: RunFolder | None = None

    @property
    def record(self) -> Record | None:
        """The record of the artifact, of a removed one too."""
        return self.made.record if self.made else None

    @property
    def removed(self) -> str:
        """By whom and when the artifact was removed; "" when it is there."""
        return self.made.describe() if isinstance(self.made, Tombstone) else ""

    @property
    def name(self) -> str:
        """The ref, or the run's id where it made nothing."""
        if self.made:
            return self.made.ref
        return self.run.run_id if self.run else ""

    @property
    def is_complete(self) -> bool:
        """Whether nothing of it is missing or still to come."""
        return self.state is None or self.state.state == COMPLETED


def find_subject(store: Store, word: str) -> Subject:
    """What ``word`` names: an artifact by its ref, else a run by its id or ``latest``.

    Raises RefError, which says both, when it is neither.
    """
    try:
        return describe_artifact(store, store.resolve(word))
    except RefError as no_artifact:
        if tombstone := store.tombstone(word):
            return describe_artifact(store, tombstone)
        try:
            return describe_run(store, find_run(store, word))
        except RefError as no_run:
            raise RefError([*no_artifact.problems, *no_run.problems]) from None


def describe_artifact(store: Store, made: Artifact | Tombstone) -> Subject:
    """An artifact, with its run where that is still there."""
    producer = made.record.producer
    run = RunFolder(store.layout.runs / producer.run_id) if producer else None
    if run is None or not run.exists:
        kept = find_kept(store, run.run_id) if run else None
        return Subject(made, None, _plan(kept) if kept else None, None, kept=kept)
    others = tuple(ref for ref in _refs(run, store) if ref != made.ref)
    return Subject(made, run, _plan(run), _state(run), others)


def describe_run(store: Store, run: RunFolder) -> Subject:
    """A run, with the first of the artifacts that it made."""
    refs = _refs(run, store)
    made: list[Artifact | Tombstone | None]
    made = [store.find(ref) or store.tombstone(ref) for ref in refs]
    first = next((each for each in made if each), None)
    others = tuple(ref for ref in refs if first is None or ref != first.ref)
    return Subject(first, run, _plan(run), _state(run), others)


def _refs(run: RunFolder, store: Store) -> list[str]:
    outputs: Mapping[str, Any] = (read_outputs(run, store) or {}).get("outputs", {})
    return [output["ref"] for output in outputs.values()]


def _plan(run: RunFolder) -> Plan | None:
    try:
        return run.plan
    except (StepsError, ArtifactError):
        return None


def _state(run: RunFolder) -> JobState:
    """The state that the run's files tell; what a cluster knows beyond them is not asked for."""
    last = run.last_attempt
    ended = last.recorded_end if last else None
    state = run.state
    if ended and ended.state == state:
        return ended
    return JobState(state)
