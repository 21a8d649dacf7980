"""The state of a run, from its files and from the launcher that started it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from nemotron_style.runtime.launch.base import handle_of
from nemotron_style.runtime.launch.registry import find_launcher
from nemotron_style.runtime.run.attempt import LOCAL, Attempt
from nemotron_style.runtime.run.folder import RunFolder
from nemotron_style.runtime.run.state import CANCELLED, COMPLETED, PENDING, JobState

NEVER_STARTED = "planned and never started"


def read_status(folder: RunFolder) -> JobState:
    """The state of a run's newest attempt, or COMPLETED once its outputs exist. Reads only."""
    if folder.outputs is not None:
        return JobState(COMPLETED, 0)
    last = folder.last_attempt
    return read_attempt_status(last) if last else JobState(PENDING, reason=NEVER_STARTED)


def read_statuses(folders: Sequence[RunFolder]) -> list[JobState | OSError]:
    """The states of many runs, or why files of one cannot be read; each backend is asked once."""
    states: dict[Path, JobState | OSError] = {}
    asked: dict[str, list[Attempt]] = {}
    for folder in folders:
        try:
            last = folder.last_attempt if folder.outputs is None else None
            if last and read_end(last) is None:
                asked.setdefault(last.executor, []).append(last)
            else:
                states[folder.path] = read_status(folder)
        except OSError as error:
            states[folder.path] = error
    for executor, attempts in asked.items():
        answers = _ask_launcher(executor, attempts)
        states |= {at.run_dir: state for at, state in zip(attempts, answers, strict=True)}
    return [states[folder.path] for folder in folders]


def read_attempt_status(attempt: Attempt) -> JobState:
    """The state of one attempt. Reads only."""
    ended = read_end(attempt)
    if ended:
        return ended
    state = find_launcher(attempt.executor).state(handle_of(attempt))
    return _complete(attempt, state)


def read_end(attempt: Attempt) -> JobState | None:
    """The end of an attempt as its files say it; None where its launcher has to be asked."""
    ended = attempt.recorded_end
    # A worker that was stopped cannot know whether its cluster starts the job again.
    stopped = ended and ended.state == CANCELLED and not attempt.is_cancelled
    return None if stopped and attempt.executor != LOCAL else ended


def _ask_launcher(executor: str, attempts: Sequence[Attempt]) -> Iterator[JobState | OSError]:
    launcher, handles = find_launcher(executor), [handle_of(attempt) for attempt in attempts]
    try:
        states = launcher.states(handles)
    except OSError:  # of one of them: which?
        yield from map(_try_status, attempts)
        return
    yield from map(_complete, attempts, states)


def _try_status(attempt: Attempt) -> JobState | OSError:
    try:
        return read_attempt_status(attempt)
    except OSError as error:
        return error


def _complete(attempt: Attempt, state: JobState) -> JobState:
    """``state``, unless the worker completed the run while it was found out."""
    return JobState(COMPLETED, 0) if state.is_final and attempt.is_run_complete else state


def refresh_status(folder: RunFolder) -> JobState:
    """The state of a run; an end that its newest attempt could not record itself is recorded now.

    For commands that act on a run. Those that show it call ``read_status``, which writes nothing.
    """
    if folder.outputs is not None:
        return JobState(COMPLETED, 0)  # the outputs say it, and the worker may be about to
    # Looked up once: another command may begin the next attempt at any time, and what is found
    # out about this one must not be recorded of that one.
    last = folder.last_attempt
    if last is None:
        return JobState(PENDING, reason=NEVER_STARTED)
    state = read_attempt_status(last)
    if state.is_final and last.recorded_end is None and not last.is_run_complete:
        last.close(state.state, exit_code=state.exit_code, error=state.reason)
    return state
