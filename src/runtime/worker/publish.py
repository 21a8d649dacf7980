"""A run that is over, told to a tracker, or as events of OpenLineage."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from nemotron_style.runtime.config.model import OPENLINEAGE, TITLES, Tracker
from nemotron_style.runtime.errors import Problem, UsageError
from nemotron_style.runtime.run.folder import RunFolder
from nemotron_style.runtime.run.kept_run import read_outputs
from nemotron_style.runtime.run.state import CANCELLED, COMPLETED, JobState
from nemotron_style.runtime.store.store import Store
from nemotron_style.runtime.worker.inputs import bind_config, find_input
from nemotron_style.runtime.worker.openlineage_client import list_events
from nemotron_style.runtime.worker.openlineage_transport import (
    URL_VARIABLE,
    Transport,
    file_transport,
    make_transport,
)
from nemotron_style.runtime.worker.tracked_run import (
    ERROR_TAG,
    FAILED,
    FINISHED,
    INTERRUPTED,
    TrackedArtifact,
)
from nemotron_style.runtime.worker.tracking import CLIENTS, Feed, describe_run

FILES = (".ndjson", ".jsonl")
ALLOWED = ", ".join(TITLES) + f", http(s)://HOST, or a file that ends in {' or '.join(FILES)}"


def publish(run: RunFolder, state: JobState, target: str, store: Store) -> str:
    """Tell ``target`` about a run that is over; where it can be looked at.

    Raises UsageError for a target that is none, and for one that cannot be told.
    """
    if target in TITLES and target != OPENLINEAGE:
        return _tell_tracker(run, state, target, store)
    transport = _choose_transport(target)
    try:
        for event in list_events(run, store):
            transport.send(event)
    except OSError as error:
        raise _failed(transport.where, error) from None
    return transport.where


def _choose_transport(target: str) -> Transport:
    url = os.environ.get(URL_VARIABLE, "") if target == OPENLINEAGE else target
    if "://" not in url and url.endswith(FILES):
        return file_transport(Path(url))
    try:
        return make_transport(url, os.environ)
    except ValueError:
        unset = target == OPENLINEAGE and not url
        what = f"needs {URL_VARIABLE}, which is not set" if unset else "cannot be published to"
        got = "" if unset else repr(target)
        raise UsageError(Problem(key="--to", what=what, got=got, allowed=ALLOWED)) from None


def _tell_tracker(run: RunFolder, state: JobState, name: str, store: Store) -> str:
    plan = run.plan
    inputs, gone = {}, []
    for planned in plan.inputs:
        artifact = find_input(planned, store)
        if artifact:
            inputs[planned.slot] = artifact
        else:
            what = store.explain_missing(planned.source)
            gone.append(Problem(where=run.run_id, key=planned.slot, what=what))
    if gone:
        raise UsageError(gone)
    # Where the run itself told this tracker, it goes on in the same project, under the same id.
    asked = bind_config(plan, inputs).trackers().get(name) or Tracker("--to")
    outputs = {
        slot: TrackedArtifact(made["ref"], made["kind"], made["digest"])
        for slot, made in (read_outputs(run, store) or {}).get("outputs", {}).items()
    }
    status = {COMPLETED: FINISHED, CANCELLED: INTERRUPTED}.get(state.state, FAILED)
    tags = {ERROR_TAG: state.reason} if status == FAILED and state.reason else {}
    feed = Feed(name, CLIENTS[name](asked), describe_run(plan, inputs, folder=run.path))
    try:
        return feed.catch_up((status, tags, outputs))
    except ModuleNotFoundError as error:
        fix = f"pip install 'nemotron-style[{name}]'"
        what = f"needs the package {error.name!r}, which is not installed"
        raise UsageError(Problem(where=TITLES[name], what=what, fix=fix)) from None
    except Exception as error:  # whatever a client of others raises
        raise _failed(TITLES[name], error) from None


def _failed(where: str, error: Any) -> UsageError:
    first, *_ = f"{error}".strip().splitlines() or [type(error).__name__]
    return UsageError(Problem(where=where, what=f"cannot be told: {first}"))
