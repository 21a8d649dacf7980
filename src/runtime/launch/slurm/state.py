"""The state of a Slurm job, and its log as it grows: first from our own files, then from Slurm."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from nemotron_style.runtime.atomic import read_json
from nemotron_style.runtime.launch.base import JobHandle, attempt_of
from nemotron_style.runtime.launch.log import LogReader, Question
from nemotron_style.runtime.launch.slurm.client import SlurmError, find_jobs, query_job
from nemotron_style.runtime.process import is_alive
from nemotron_style.runtime.run.attempt import Attempt
from nemotron_style.runtime.run.folder import RunFolder
from nemotron_style.runtime.run.state import CANCELLED, COMPLETED, FAILED, FINAL, LOST, JobState

SECONDS_BETWEEN_LOOKS = 0.2
SECONDS_BETWEEN_QUESTIONS = 2.0
SECONDS_UNTIL_FILES_SHOW = 60  # those of another machine may show up this much later
EXIT_OF_A_STOP = 130


def read_state(handle: JobHandle) -> JobState:
    """The state of the run: COMPLETED as soon as its outputs exist, else that of its job."""
    if RunFolder(handle.run_dir).outputs is not None:
        return JobState(COMPLETED, 0)
    return read_job_state(handle)


def read_job_state(handle: JobHandle) -> JobState:
    """The state of the job, across all the times that Slurm started it. Reads only."""
    attempt = find_current(handle)
    ended = read_end(attempt)
    if ended:
        return ended
    try:
        job_id = find_job(attempt)
        state = query_job(job_id) if job_id else None
    except SlurmError as error:
        return JobState(attempt.recorded_state, reason=f"no news from Slurm: {error}")
    if state and state.state not in FINAL:
        return JobState(state.state, reason=state.reason)
    # The job may have ended while Slurm was asked.
    return read_end(attempt) or attempt.recorded_end or conclude(attempt, state, job_id=job_id)


def conclude(attempt: Attempt, state: JobState | None, *, job_id: str) -> JobState:
    """The end of a job whose script could not record it; ``state`` is what Slurm says."""
    if attempt.is_run_complete:
        return JobState(COMPLETED, 0)
    if state is None and is_young(attempt):
        reason = "" if job_id else "being submitted"
        return JobState(attempt.recorded_state, reason=reason)
    if state is None:
        return JobState(LOST, reason="Slurm knows no such job" if job_id else "never submitted")
    if state.state == FAILED and attempt.is_cancelled:
        return JobState(CANCELLED, EXIT_OF_A_STOP, "cancelled")
    if state.state == CANCELLED and state.reason.startswith("Dependency"):
        return JobState(CANCELLED, None, "a job that it waited for did not complete")
    reason = state.reason
    if state.state == FAILED and reason in ("", "NonZeroExitCode"):
        reason = read_last_line(attempt, job_id) or reason
    return JobState(state.state, state.exit_code, reason)


def read_end(attempt: Attempt) -> JobState | None:
    """The end of the job as its batch script wrote it, which it does last of all."""
    batch = read_json(attempt.path / "batch.json") or {}
    if batch.get("state") not in FINAL:
        return None
    reason = str(batch.get("reason") or "")
    if batch["state"] == FAILED:
        failure = attempt.rank_failure or {}
        reason = attempt.record.get("error") or failure.get("error") or reason
        reason = str(reason or read_last_line(attempt, str(attempt.job.get("id", ""))))
    return JobState(batch["state"], batch.get("exit_code"), reason)


def read_last_line(attempt: Attempt, job_id: str) -> str:
    """The last line that any machine of the job wrote; Slurm's own complaints stand last."""
    for path in (attempt.run_dir / f"job-{job_id}.txt", attempt.log):
        lines = [line.strip() for line in read_tail(path).splitlines() if line.strip()]
        if lines and not lines[-1].startswith("attempt "):  # the script's own first line
            return lines[-1]
    return ""


def read_tail(path: Path, size: int = 4096) -> str:
    """The end of a text file; nothing when there is no such file."""
    try:
        with open(path, "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - size))
            return file.read().decode(errors="replace")
    except OSError:
        return ""


def find_current(handle: JobHandle) -> Attempt:
    """The newest attempt of the same job; Slurm may have started it more than once."""
    first = attempt_of(handle)
    job_id = first.job.get("id")
    later = [
        attempt
        for attempt in RunFolder(handle.run_dir).attempts
        if attempt.number > handle.attempt and job_id and attempt.job.get("id") == job_id
    ]
    return later[-1] if later else first


def find_job(attempt: Attempt) -> str:
    """The number of its job, "" when there is none: who submitted it may have died right after.

    Raises ``SlurmError`` when Slurm has to be asked and does not answer.
    """
    known = str(attempt.job.get("id", ""))
    if known:
        return known
    folder = RunFolder(attempt.run_dir)
    others = {str(other.job.get("id", "")) for other in folder.attempts}
    unknown = [job for job in find_jobs(folder.run_id, folder.path) if job not in others]
    return unknown[-1] if unknown else ""


def is_young(attempt: Attempt) -> bool:
    """Whether something happened here so lately that there may be more to come."""
    if "id" not in attempt.job and is_alive(attempt.record.get("launcher", {})):
        return True
    newest = max((each.stat().st_mtime for each in attempt.path.iterdir()), default=0.0)
    return time.time() - newest < SECONDS_UNTIL_FILES_SHOW


def follow_log(handle: JobHandle, *, node: int) -> Iterator[str]:
    """What a machine writes, across the times that Slurm starts the job; "" when nothing is new.

    When a job ends before any machine wrote something, Slurm's own output is shown instead.
    """
    number, is_empty = handle.attempt, True
    reader = LogReader(attempt_of(handle).log_of(node))
    over = Question(
        lambda: read_job_state(handle).is_final,
        seconds=SECONDS_BETWEEN_QUESTIONS,
        hint=lambda: read_end(find_current(handle)) is not None,
    )
    while True:
        ended = over()  # before reading, so that everything written by then is read
        text = reader.read()
        if text:
            is_empty = False
            yield text
        elif find_current(handle).number > number:
            number += 1
            reader = LogReader(handle.run_dir / "attempts" / str(number) / f"log-{node}.txt")
            yield f"--- attempt {number}: Slurm started the job again ---\n"
        elif ended:
            break
        else:
            yield ""
            time.sleep(SECONDS_BETWEEN_LOOKS)
    if is_empty:
        yield read_tail(handle.run_dir / f"job-{attempt_of(handle).job.get('id')}.txt")


def describe_unmet(handles: Sequence[JobHandle]) -> tuple[list[str], list[str]]:
    """Numbers of the jobs to wait for, and a note on each run that will never complete."""
    waited, failed = [], []
    for handle in handles:
        state = read_state(handle)
        job_id = str(find_current(handle).job.get("id", ""))
        if state.state == COMPLETED:
            continue
        if state.is_final or not job_id:
            failed.append(f"{handle.run_dir.name} is {state.state}")
        else:
            waited.append(job_id)
    return waited, failed
