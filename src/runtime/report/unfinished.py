"""Runs of a store that made nothing: failed, killed, stopped, or under way, by their own files."""

from __future__ import annotations

from dataclasses import dataclass

from nemotron_style.runtime.errors import Problem, StepsError
from nemotron_style.runtime.run.kept_run import find_kept
from nemotron_style.runtime.run.listing import describe_unreadable, scan_runs
from nemotron_style.runtime.run.state import COMPLETED
from nemotron_style.runtime.secrets.redact import redact
from nemotron_style.runtime.store.store import Store

MOST_UNFINISHED = 50


@dataclass(frozen=True)
class Unfinished:
    """A run without outputs; ``error`` is the first line of its reason."""

    run_id: str
    source: str
    state: str
    attempts: int
    error: str


def list_unfinished(store: Store) -> tuple[list[Unfinished], int, list[Problem]]:
    """The newest runs without outputs, how many more there are, and which cannot be read.

    What a cluster knows beyond the files of a run is not asked for.
    """
    runs, problems, _ = scan_runs(store.local)
    without = [run for run in runs if not (run.path / "outputs.json").exists()]
    found: list[Unfinished] = []
    for run in without[:MOST_UNFINISHED]:
        try:
            plan, attempts, state = run.plan, run.attempts, run.state
            if state == COMPLETED or find_kept(store, run.run_id):
                continue  # what it made is elsewhere
            ended = attempts[-1].recorded_end if attempts else None
            error, *_ = redact(ended.reason if ended else "").splitlines() or [""]
            source = f"{plan.step} -c {plan.config_name}"
            found.append(Unfinished(run.run_id, source, state, len(attempts), error))
        except OSError as error:
            problems.append(describe_unreadable(run.run_id, error))
        except StepsError as error:
            problems += error.problems
    return found, len(without[MOST_UNFINISHED:]), problems
