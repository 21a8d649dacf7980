"""How a run stands, asked of the launcher that has it."""

from __future__ import annotations

from nemotron_style.runtime.launch.base import JobHandle
from nemotron_style.runtime.launch.registry import find_launcher
from nemotron_style.runtime.run.attempt import LOCAL, Attempt
from nemotron_style.runtime.run.folder import RunFolder
from nemotron_style.runtime.run.state import CANCELLED, COMPLETED, FINAL, PENDING, JobState


def read_status(folder: RunFolder) -> JobState:
    """The state of a run's newest attempt, or COMPLETED once its outputs stand. Reads only."""
    if folder.outputs is not None:
        return JobState(COMPLETED, 0)
    last = folder.last_attempt
    if last is None:
        return JobState(PENDING, reason="planned and never started")
    record = last.record
    if record.get("state") in FINAL and not _may_go_on(last):
        return JobState(record["state"], record.get("exit_code"), str(record.get("error", "")))
    return find_launcher(last.executor).state(handle_of(last))


def refresh_status(folder: RunFolder) -> JobState:
    """The same; an end that nobody could write down is written down now.

    Not that of a run whose outputs stand: they say it, and the worker may be about to.
    """
    state = read_status(folder)
    last = folder.last_attempt if folder.outputs is None else None
    if last and state.is_final and last.record.get("state") not in FINAL:
        last.close(state.state, exit_code=state.exit_code, error=state.reason)
    return state


def _may_go_on(attempt: Attempt) -> bool:
    """A worker that was told to stop cannot know whether its cluster starts the job again."""
    stopped = attempt.record.get("state") == CANCELLED and not attempt.is_cancelled
    return stopped and attempt.executor != LOCAL


def handle_of(attempt: Attempt) -> JobHandle:
    """What a launcher needs to find an attempt again."""
    return JobHandle(attempt.executor, attempt.path.parent.parent, attempt.number)
