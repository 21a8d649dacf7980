"""The state of a Lepton job, in the words that every launcher shares."""

from __future__ import annotations

import contextlib
import os
import time
from dataclasses import replace

from nemotron_style.runtime.launch.lepton.client import RemoteJob
from nemotron_style.runtime.run.attempt import Attempt
from nemotron_style.runtime.run.folder import RunFolder, open_store
from nemotron_style.runtime.run.kept_run import read_outputs
from nemotron_style.runtime.run.plan import Plan
from nemotron_style.runtime.run.state import (
    CANCELLED,
    COMPLETED,
    FAILED,
    LOST,
    PENDING,
    REQUEUED,
    RUNNING,
    JobState,
)

SECONDS_TO_SUBMIT = 120
SECONDS_UNTIL_FILES_SHOW = 60
NO_OUTPUTS = "its pods ended well, and left no outputs"

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


def conclude(attempt: Attempt, job: RemoteJob | None, *, plan: Plan) -> JobState:
    """The state of an attempt, from its files and from what the workspace says.

    ``job`` is None when the workspace has no such job.
    """
    written = read_files(attempt)  # it may have ended while the workspace was asked
    if written is not None:
        return written
    if job is None:
        return explain_absence(attempt)
    state, reason = STATES.get(job.state, ("", ""))
    if job.state == "Archived":  # only the number of its pods that ended well is left
        failure = FAILED if job.failed else LOST
        state = COMPLETED if job.succeeded >= job.wanted else failure
    if state == FAILED:
        return explain_failure(attempt)
    if state == COMPLETED:
        return check_completion(attempt, job, plan)
    if not state:
        return JobState(attempt.recorded_state, reason=f"Lepton calls it {job.state!r}")
    return JobState(state, reason=reason)


def read_files(attempt: Attempt) -> JobState | None:
    """The end of the attempt by our own files; None while they say nothing of it."""
    if attempt.is_run_complete:
        return JobState(COMPLETED, 0)
    ended = attempt.recorded_end
    return replace(ended, state=_unless_cancelled(attempt, ended.state)) if ended else None


def explain_absence(attempt: Attempt) -> JobState:
    """The workspace has no such job: not yet, no more, or never."""
    record = attempt.record
    young = time.time() - float(record.get("started", 0)) < SECONDS_TO_SUBMIT
    if attempt.is_cancelled:
        return JobState(CANCELLED, reason="deleted in Lepton")
    if "id" not in attempt.job and (young or attempt.may_be_submitted):
        return JobState(PENDING, reason="is being submitted")
    return JobState(LOST, reason="Lepton knows no such job")


def check_completion(attempt: Attempt, job: RemoteJob, plan: Plan) -> JobState:
    """The state when every pod ended well: outputs must be there, where they can be seen."""
    if not plan.is_seen:
        is_made = plan.root is None or read_outputs(RunFolder(attempt.run_dir), open_store(plan))
        return JobState(COMPLETED, 0) if is_made else JobState(FAILED, reason=NO_OUTPUTS)
    with contextlib.suppress(OSError):
        os.listdir(attempt.run_dir)  # makes a network disk look again
    written = read_files(attempt)
    if written is not None:
        return written
    if job.ended is not None and time.time() - job.ended < SECONDS_UNTIL_FILES_SHOW:
        return JobState(RUNNING, reason="has ended in Lepton; its files do not show here yet")
    return JobState(FAILED, reason=NO_OUTPUTS)


def explain_failure(attempt: Attempt) -> JobState:
    """The pod that failed, and with what, as far as the files say."""
    state = _unless_cancelled(attempt, FAILED)
    failure = attempt.rank_failure
    if failure:
        return JobState(state, failure.get("exit_code"), str(failure.get("error", "")))
    culprit = find_culprit(attempt)
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
    # Codes above 128 are signals: those nodes were ended, and come last.
    failed = sorted((code > 128, node, code) for node, code in codes if code)
    return failed[0][1:] if failed else None


def _unless_cancelled(attempt: Attempt, state: str) -> str:
    return CANCELLED if attempt.is_cancelled and state != COMPLETED else state
