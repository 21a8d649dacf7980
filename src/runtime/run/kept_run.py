"""Complete runs as a store keeps them: a folder has the run, a bucket its plan and outputs.

So any machine that reads the bucket knows what was made, and how to make it again.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from nemotron_style.runtime import atomic
from nemotron_style.runtime.errors import RefError
from nemotron_style.runtime.run.folder import RunFolder
from nemotron_style.runtime.run.listing import find_run
from nemotron_style.runtime.run.plan import Plan
from nemotron_style.runtime.store.roots import files
from nemotron_style.runtime.store.store import Store


def read_outputs(run: RunFolder, store: Store) -> dict[str, Any] | None:
    """What a complete run made (``outputs.json``); a bucket tells that of runs of any machine."""
    own = run.outputs
    if own is not None or not store.url:
        return own
    try:
        return atomic.parse_object(store.layout.complete(run.run_id).read_text())
    except FileNotFoundError:
        return None


def fetch_outputs(run: RunFolder, store: Store) -> dict[str, Any] | None:
    """:func:`read_outputs`; what only the bucket said stands in the run's folder from now on."""
    outputs = read_outputs(run, store)
    if outputs is not None and run.exists and run.outputs is None:
        with suppress(OSError):  # a folder that can only be read is good enough to reuse from
            atomic.write_json(run.path / "outputs.json", outputs)
    return outputs


def note_outputs(plan: Plan, store: Store, outputs: Mapping[str, Any]) -> None:
    """Keep in a bucket the plan of a complete run, then what it made."""
    if store.url:
        path, text = store.layout.complete(plan.run_id), json.dumps(outputs, indent=2) + "\n"
        files.write_text(path.parent / "plan.json", plan.to_json(), scratch=store.layout.staging)
        files.write_text(path, text, scratch=store.layout.staging)


def find_complete_run(store: Store, word: str) -> RunFolder:
    """:func:`find_run`, and of a store in a bucket also a run that another machine completed.

    Of such a one there are the plan and the outputs, and no attempts.
    """
    try:
        run = find_run(store, word)
    except RefError:
        kept = find_kept(store, word)
        if kept is None:
            raise
        return kept
    return (find_kept(store, run.run_id) if run.outputs is None else None) or run


def find_kept(store: Store, word: str) -> RunFolder | None:
    """A complete run as a bucket keeps it, by its id or what it made; None where there is none."""
    if not store.url:
        return None
    run_id = word
    with suppress(RefError):
        producer = store.resolve(word).record.producer
        run_id = producer.run_id if producer else word
    with suppress(RefError):  # no word that a run could be called
        kept = RunFolder(store.layout.complete(run_id).parent)
        return kept if kept.exists else None
    return None
