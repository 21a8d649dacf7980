"""What runs under way need, artifacts and other runs: nobody may remove these."""

from __future__ import annotations

import time
from collections.abc import Iterator

from nemotron_style.runtime.errors import StepsError, UsageError, raise_all
from nemotron_style.runtime.launch.status import read_status
from nemotron_style.runtime.run.folder import RunFolder
from nemotron_style.runtime.run.listing import scan_runs
from nemotron_style.runtime.store.index import read_refs
from nemotron_style.runtime.store.resolve import decided_output
from nemotron_style.runtime.store.store import Store

_BEGINS_S = 600.0  # a plan that is older than this and has no attempt is not about to begin


def find_in_use(store: Store) -> dict[str, str]:
    """The refs of all inputs and outputs of runs that may be under way, each with the reason.

    Raises ``UsageError`` when one cannot be read, since nobody knows then what it needs.
    """
    in_use: dict[str, str] = {}
    for run, reason in _find_active(store):
        in_use |= dict.fromkeys(_artifacts_of(run, store), reason)
    return in_use


def find_needed_runs(store: Store) -> dict[str, str]:
    """The ids of runs that may be under way, and of those whose outputs they wait for.

    Each with the reason; raises as :func:`find_in_use`.
    """
    needed: dict[str, str] = {}
    for run, reason in _find_active(store):
        awaited = [planned.producer[0] for planned in run.plan.inputs if planned.producer]
        needed |= dict.fromkeys([run.run_id, *awaited], reason)
    return needed


def _find_active(store: Store) -> Iterator[tuple[RunFolder, str]]:
    runs, unreadable, _ = scan_runs(store.local)
    raise_all(UsageError, unreadable)
    for run in runs:
        if reason := _describe_activity(run):
            yield run, reason


def _describe_activity(run: RunFolder) -> str:
    """Why a run may be under way; empty for one that ended."""
    if run.outputs is not None:
        return ""
    if run.last_attempt is None:
        age = time.time() - (run.path / "plan.json").stat().st_mtime
        return f"{run.run_id} is about to begin" if age < _BEGINS_S else ""
    try:
        state = read_status(run)
    except (OSError, StepsError) as error:  # a cluster that does not answer
        return f"{run.run_id} may be under way: {error}"
    return "" if state.is_final else f"{run.run_id} uses it: {state.state}"


def _artifacts_of(run: RunFolder, store: Store) -> Iterator[str]:
    """The refs of what a run reads and has committed, also of what is hidden to be removed."""
    plan, layout = run.plan, store.layout
    made = [(run.run_id, output.slot) for output in plan.outputs]
    made += [planned.producer for planned in plan.inputs if planned.producer]
    for run_id, slot in made:
        if record := decided_output(layout, run_id, slot):
            yield record.ref
    for planned in plan.inputs:
        if planned.source.startswith("sha256:"):
            yield from read_refs(layout, planned.source)
