"""OpenLineage: that an attempt at a run began, how it ended, what it read and made."""

from __future__ import annotations

import os
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from importlib import metadata
from typing import Any

from nemotron_style.runtime.config.model import Tracker
from nemotron_style.runtime.run.attempt import Attempt
from nemotron_style.runtime.run.folder import RunFolder
from nemotron_style.runtime.run.kept_run import read_outputs
from nemotron_style.runtime.run.plan import Plan
from nemotron_style.runtime.run.state import COMPLETED, FAILED, LOST, TIMEOUT
from nemotron_style.runtime.secrets.redact import redact_leaves
from nemotron_style.runtime.store.lineage.graph import Node, describe_node
from nemotron_style.runtime.store.lineage.openlineage import (
    ABORT,
    COMPLETE,
    FAIL,
    Event,
    RunFacts,
    describe_making,
    end_event,
    identify_run,
    start_event,
)
from nemotron_style.runtime.store.store import Store
from nemotron_style.runtime.worker import tracked_run
from nemotron_style.runtime.worker.inputs import find_input
from nemotron_style.runtime.worker.openlineage_transport import (
    URL_VARIABLE,
    Transport,
    make_transport,
)
from nemotron_style.runtime.worker.tracked_run import ERROR_TAG, TrackedArtifact, TrackedRun

OUTCOMES = {
    tracked_run.FINISHED: COMPLETE,
    tracked_run.FAILED: FAIL,
    tracked_run.INTERRUPTED: ABORT,
}
PARENT_VARIABLE = "OPENLINEAGE_PARENT_ID"


class OpenLineageClient:
    """The endpoint or file that the environment names; metrics are nothing that it knows."""

    def __init__(self, asked: Tracker) -> None:
        self.asked = asked
        self.transport: Transport | None = None
        self.facts: RunFacts | None = None

    def begin(self, run: TrackedRun, earlier: Mapping[str, str]) -> Mapping[str, str]:
        self.transport = make_transport(os.environ.get(URL_VARIABLE, ""), os.environ)
        self.folder = RunFolder(run.folder)
        plan = self.folder.plan
        self.store = Store(plan.root or plan.store, scratch=plan.store)
        attempt = self.folder.last_attempt
        assert attempt is not None
        facts = read_attempt(self.folder, attempt, self.store)
        self.facts = replace(facts, parent=find_parent(os.environ))
        self.transport.send(start_event(self.facts))
        run_id = identify_run(run.run_id, attempt.number)
        return {"id": run_id, "where": self.transport.where}

    def log(self, rows: Sequence[tuple[int, Mapping[str, float]]]) -> None:
        pass

    def end(
        self, status: str, tags: Mapping[str, str], outputs: Mapping[str, TrackedArtifact]
    ) -> None:
        assert self.transport is not None
        assert self.facts is not None
        error, now = tags.get(ERROR_TAG, ""), write_time(None)
        facts = replace(self.facts, ended=now, outcome=OUTCOMES[status], error=error)
        if outputs:
            facts = replace(facts, **describe_outputs(self.folder, self.store))
        self.transport.send(end_event(facts))


def list_events(folder: RunFolder, store: Store) -> list[Event]:
    """Two events for each attempt at a run that is over."""
    events = []
    for attempt in folder.attempts:
        facts = read_attempt(folder, attempt, store)
        if attempt.state == COMPLETED:
            facts = replace(facts, **describe_outputs(folder, store))
        events += [start_event(facts), end_event(facts)]
    return events


def read_attempt(folder: RunFolder, attempt: Attempt, store: Store) -> RunFacts:
    """An attempt by the files of its run; what it made is not looked for."""
    plan, record, state = folder.plan, attempt.record, attempt.state
    outcomes = {COMPLETED: COMPLETE} | dict.fromkeys((FAILED, LOST, TIMEOUT), FAIL)
    outcome = outcomes.get(state, ABORT)
    return RunFacts(
        plan.run_id,
        plan.step,
        plan.config_name,
        attempt.number,
        started=write_time(record.get("begun") or record.get("started")),
        ended=write_time(record.get("ended") or attempt.last_sign or None),
        outcome=outcome,
        error=str(record.get("error") or state) if outcome == FAIL else "",
        config=redact_leaves(plan.config),
        code=describe_planned_code(plan),
        more={"fingerprint": plan.fingerprint},
        inputs=list(read_inputs(plan, store).items()),
    )


def read_inputs(plan: Plan, store: Store) -> dict[str, Node]:
    """The inputs by slot; one that is no longer in the store cannot be named."""
    found = {planned.slot: find_input(planned, store) for planned in plan.inputs}
    return {slot: describe_node(artifact) for slot, artifact in found.items() if artifact}


def describe_outputs(folder: RunFolder, store: Store) -> dict[str, Any]:
    """What a run made, and what its records say about the code and the machine."""
    told: dict[str, Any] = {}
    nodes = []
    for output in (read_outputs(folder, store) or {}).get("outputs", {}).values():
        ref = output["ref"]
        found = store.find(ref) or store.tombstone(ref)
        nodes.append(
            describe_node(found) if found else Node(ref, output["kind"], output["digest"], None)
        )
        if found:
            told = {"more": describe_making(found.record), "code": found.record.code}
    return told | {"outputs": nodes}


def describe_planned_code(plan: Plan) -> dict[str, str]:
    """The code as the plan knows it; the records of outputs have the commit too."""
    try:
        version = metadata.version("nemotron-style")
    except metadata.PackageNotFoundError:
        version = "unknown"
    known = {"entrypoint": plan.entrypoint, "digest": str(plan.identity["code"])}
    return known | {"version": version} | (plan.snapshot.facts if plan.snapshot else {})


def find_parent(variables: Mapping[str, str]) -> tuple[str, str, str] | None:
    """The job that started this one, as ``OPENLINEAGE_PARENT_ID`` has it: NAMESPACE/NAME/RUN."""
    text = variables.get(PARENT_VARIABLE, "")
    if not text:
        return None
    namespace, _, rest = text.partition("/")
    name, _, run_id = rest.rpartition("/")
    if not name:
        raise ValueError(f"{PARENT_VARIABLE} is not NAMESPACE/NAME/RUN, but {text!r}")
    return namespace, name, str(uuid.UUID(run_id))


def write_time(seconds: float | None) -> str:
    """A time, or now, as ISO 8601."""
    moment = datetime.now(UTC) if seconds is None else datetime.fromtimestamp(seconds, UTC)
    return moment.isoformat()
