"""The state of a run, from its files and from the launcher that started it."""

from __future__ import annotations

from nemotron_style.runtime.launch.base import handle_of
from nemotron_style.runtime.launch.registry import find_launcher
from nemotron_style.runtime.run.attempt import LOCAL
from nemotron_style.runtime.run.folder import RunFolder
from nemotron_style.runtime.run.state import CANCELLED, COMPLETED, PENDING, JobState


def read_status(folder: RunFolder) -> JobState:
    """The state of a run's newest attempt, or COMPLETED once its outputs exist. Reads only."""
    if folder.outputs is not None:
        return JobState(COMPLETED, 0)
    last = folder.last_attempt
    if last is None:
        return JobState(PENDING, reason="planned and never started")
    ended = last.recorded_end
    # A worker that was stopped cannot know whether its cluster starts the job again.
    stopped = ended and ended.state == CANCELLED and not last.is_cancelled
    if ended and (last.executor == LOCAL or not stopped):
        return ended
    return find_launcher(last.executor).state(handle_of(last))


def refresh_status(folder: RunFolder) -> JobState:
    """Refresh the state of a run; a worker that died without a final state is recorded as LOST.

    A run whose outputs exist is left alone: they say it, and the worker may be about to.
    """
    state = read_status(folder)
    last = folder.last_attempt if folder.outputs is None else None
    if last and state.is_final and last.recorded_end is None:
        last.close(state.state, exit_code=state.exit_code, error=state.reason)
    return state
