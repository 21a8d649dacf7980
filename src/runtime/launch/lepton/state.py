"""How a Lepton job stands, in the words that every launcher shares."""

from __future__ import annotations

import contextlib
import os
import time

from nemotron_style.runtime.launch.lepton.client import RemoteJob
from nemotron_style.runtime.process import is_alive
from nemotron_style.runtime.run.attempt import Attempt
from nemotron_style.runtime.run.folder import RunFolder
from nemotron_style.runtime.run.state import (
    CANCELLED,
    COMPLETED,
    FAILED,
    FINAL,
    LOST,
    PENDING,
    REQUEUED,
    RUNNING,
    JobState,
)

SECONDS_TO_SUBMIT = 120
SECONDS_UNTIL_FILES_SHOW = 60

STATES = {
    "Queueing": (PENDING, "waits in Lepton's queue"),
    "Awaiting": (PENDING, "waits for its time"),
    "Starting": (PENDING, "its pods are being started"),
    "Running": (RUNNING, ""),
    "Restarting": (REQUEUED, "Lepton starts it again"),
    "PendingRetry": (REQUEUED, "Lepton is about to start it again"),
    "Stopping": (RUNNING, "is being stopped"),
    "Terminating": (RUNNING, "is being stopped"),
    "Deleting": (RUNNING, "is being deleted"),
    "Stopped": (CANCELLED, "stopped in Lepton"),
    "Deleted": (CANCELLED, "deleted in Lepton"),
    "Completed": (COMPLETED, ""),
    "Failed": (FAILED, ""),
}


def judge(attempt: Attempt, found: RemoteJob | None, *, shared: bool) -> JobState:
    """The state of an attempt out of its files and of what the workspace tells.

    ``found`` is None when the workspace has no such job, or was not asked because the files
    suffice; ``shared`` when the worker's files can be seen from here.
    """
    written = judge_files(attempt)
    if written is not None:
        return written
    if found is None:
        return judge_absence(attempt)
    state, reason = STATES.get(found.state, ("", ""))
    if found.state == "Archived":
        state = judge_counts(found)
    if state == FAILED:
        return explain_failure(attempt)
    if state == COMPLETED:
        return judge_completion(attempt, found, shared=shared)
    if not state:
        written_state = str(attempt.record.get("state", PENDING))
        return JobState(written_state, reason=f"Lepton calls it {found.state!r}")
    return JobState(state, reason=reason)


def judge_files(attempt: Attempt) -> JobState | None:
    """What our own files say about the end, if they say anything yet."""
    if RunFolder(attempt.path.parent.parent).outputs is not None:
        return JobState(COMPLETED, 0)
    record = attempt.record
    state, code = str(record.get("state", PENDING)), record.get("exit_code")
    if state not in FINAL:
        return None
    return JobState(_unless_cancelled(attempt, state), code, str(record.get("error", "")))


def judge_absence(attempt: Attempt) -> JobState:
    """The workspace has no such job: not yet, no more, or never."""
    record = attempt.record
    young = time.time() - float(record.get("started", 0)) < SECONDS_TO_SUBMIT
    if attempt.is_cancelled:
        return JobState(CANCELLED, reason="deleted in Lepton")
    if not attempt.job and (young or is_alive(record.get("launcher", {}))):
        return JobState(PENDING, reason="is being submitted")
    return JobState(LOST, reason="Lepton knows no such job")


def judge_counts(found: RemoteJob) -> str:
    """How an archived job ended, from the number of its pods that ended well."""
    if found.succeeded >= found.wanted:
        return COMPLETED
    return FAILED if found.failed else LOST


def judge_completion(attempt: Attempt, found: RemoteJob, *, shared: bool) -> JobState:
    """Every pod ended well; where its files can be seen, outputs have to be there too."""
    if not shared:
        return JobState(COMPLETED, 0)
    with contextlib.suppress(OSError):
        os.listdir(attempt.path.parent.parent)  # makes a network disk look again
    written = judge_files(attempt)
    if written is not None:
        return written
    if found.ended is not None and time.time() - found.ended < SECONDS_UNTIL_FILES_SHOW:
        return JobState(RUNNING, reason="has ended in Lepton; its files do not show here yet")
    return JobState(FAILED, reason="its pods ended well, and left no outputs")


def explain_failure(attempt: Attempt) -> JobState:
    """Which pod failed, and with what, as far as the files tell."""
    culprit = find_culprit(attempt)
    state = _unless_cancelled(attempt, FAILED)
    failure = attempt.rank_failure
    if failure:
        return JobState(state, failure.get("exit_code"), str(failure.get("error", "")))
    if culprit:
        node, code = culprit
        return JobState(state, code, f"node {node} ended with exit code {code}")
    return JobState(state, reason="Lepton says Failed; the log may tell why")


def find_culprit(attempt: Attempt) -> tuple[int, int] | None:
    """The node that failed by itself before those that were ended, and its exit code."""
    codes = []
    for path in attempt.path.glob("exit-*"):
        with contextlib.suppress(OSError, ValueError):
            codes.append((int(path.name.removeprefix("exit-")), int(path.read_text())))
    failed = sorted((code > 128, node, code) for node, code in codes if code)
    return failed[0][1:] if failed else None


def _unless_cancelled(attempt: Attempt, state: str) -> str:
    return CANCELLED if attempt.is_cancelled and state != COMPLETED else state
