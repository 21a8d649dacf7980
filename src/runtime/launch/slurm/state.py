"""How a Slurm job stands, and its log as it grows: first from our own files, then from Slurm."""

from __future__ import annotations

import codecs
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from nemotron_style.runtime.atomic import read_json
from nemotron_style.runtime.launch.base import JobHandle, attempt_of
from nemotron_style.runtime.launch.slurm.client import Seen, Silent, find_jobs, look_up
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
    JobState,
)

SECONDS_BETWEEN_LOOKS = 0.2
SECONDS_BETWEEN_QUESTIONS = 2.0
# Files of another machine may show up this much later.
SECONDS_OF_PATIENCE = 60
EXIT_OF_A_STOP = 130


def tell_state(handle: JobHandle) -> JobState:
    """The state of the run: COMPLETED as soon as its outputs stand, else that of its job."""
    if RunFolder(handle.run_dir).outputs is not None:
        return JobState(COMPLETED, 0)
    return tell_job(handle)


def tell_job(handle: JobHandle) -> JobState:
    """The state of the job, through all the times that Slurm started it. Reads only."""
    attempt = find_current(handle)
    told = read_end(attempt)
    if told is not None:
        return told
    try:
        job_id = find_job(attempt)
        seen = look_up(job_id) if job_id else None
    except Silent as error:
        return JobState(as_written(attempt), reason=f"no news from Slurm: {error}")
    if seen is not None and seen.state not in FINAL:
        return JobState(seen.state, reason=seen.reason)
    told = read_end(attempt)  # it may have ended between the two looks
    if told is not None:
        return told
    if attempt.record.get("state") in FINAL:
        return tell_record(attempt)
    return conclude(attempt, seen, job_id=job_id)


def conclude(attempt: Attempt, seen: Seen | None, *, job_id: str) -> JobState:
    """The end of a job whose script could not write it down."""
    if RunFolder(attempt.path.parent.parent).outputs is not None:
        return JobState(COMPLETED, 0)
    if seen is None:
        if is_young(attempt):
            return JobState(as_written(attempt), reason="being submitted" if not job_id else "")
        return JobState(LOST, reason="Slurm knows no such job" if job_id else "never submitted")
    if seen.state == FAILED and attempt.is_cancelled:
        return JobState(CANCELLED, EXIT_OF_A_STOP, "cancelled")
    if seen.state == CANCELLED and seen.reason.startswith("Dependency"):
        return JobState(CANCELLED, None, "a job that it waited for did not complete")
    reason = seen.reason
    if seen.state == FAILED and reason in ("", "NonZeroExitCode"):
        reason = read_last_line(attempt, job_id) or reason
    return JobState(seen.state, seen.exit_code, reason)


def read_end(attempt: Attempt) -> JobState | None:
    """The end of the job as its batch script wrote it, which it does last of all."""
    batch = read_json(attempt.path / "batch.json") or {}
    if batch.get("state") not in FINAL:
        return None
    reason = str(batch.get("reason") or "")
    if batch["state"] == FAILED:
        reason = explain_failure(attempt, reason)
    return JobState(batch["state"], batch.get("exit_code"), reason)


def explain_failure(attempt: Attempt, given: str) -> str:
    """What the workers say, else what the script says, else the last line of its output."""
    failure = attempt.rank_failure or {}
    worker = attempt.record.get("error") or failure.get("error")
    return str(worker or given or read_last_line(attempt, str(attempt.job.get("id", ""))))


def read_last_line(attempt: Attempt, job_id: str) -> str:
    """The last line that any machine of the job wrote; Slurm's own complaints stand last."""
    for path in (attempt.path.parent.parent / f"job-{job_id}.txt", attempt.log):
        lines = read_tail(path).splitlines()
        spoken = [line.strip() for line in lines if line.strip()]
        if spoken and not spoken[-1].startswith("attempt "):
            return spoken[-1]
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

    Raises ``Silent`` when Slurm has to be asked and does not answer.
    """
    known = str(attempt.job.get("id", ""))
    if known:
        return known
    folder = attempt.path.parent.parent
    others = {str(other.job.get("id", "")) for other in RunFolder(folder).attempts}
    unknown = [job for job in find_jobs(folder.name, folder) if job not in others]
    return unknown[-1] if unknown else ""


def as_written(attempt: Attempt) -> str:
    return str(attempt.record.get("state", PENDING))


def tell_record(attempt: Attempt) -> JobState:
    record = attempt.record
    return JobState(record["state"], record.get("exit_code"), str(record.get("error", "")))


def is_young(attempt: Attempt) -> bool:
    """Whether something happened here so lately that there may be more to come."""
    record: dict[str, Any] = attempt.record
    if "id" not in attempt.job and is_alive(record.get("launcher", {})):
        return True
    newest = max((each.stat().st_mtime for each in attempt.path.iterdir()), default=0.0)
    return time.time() - newest < SECONDS_OF_PATIENCE


def follow_log(handle: JobHandle, *, node: int) -> Iterator[str]:
    """What a machine writes, across the times that Slurm starts the job; "" when nothing is new.

    A job that ends before any machine wrote something leaves only Slurm's words; they are given.
    """
    number, spoke, asked, over = handle.attempt, False, 0.0, False
    reader = Reader(attempt_of(handle).log_of(node))
    while True:
        if not over and time.monotonic() - asked > SECONDS_BETWEEN_QUESTIONS:
            over, asked = tell_job(handle).is_final, time.monotonic()
        elif not over:
            over = read_end(find_current(handle)) is not None
        text = reader.read()
        if text:
            spoke = True
            yield text
            continue
        if find_current(handle).number > number:
            number += 1
            reader = Reader(handle.run_dir / "attempts" / str(number) / f"log-{node}.txt")
            yield f"--- attempt {number}: Slurm started the job again ---\n"
            continue
        if over:
            break
        yield ""
        time.sleep(SECONDS_BETWEEN_LOOKS)
    if not spoke:
        yield read_tail(handle.run_dir / f"job-{attempt_of(handle).job.get('id')}.txt")


class Reader:
    """A file that grows, may not be there yet, and may be on another machine's disk."""

    def __init__(self, path: Path) -> None:
        self.path, self.offset = path, 0
        self.decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def read(self) -> str:
        """What was written since the last time."""
        try:
            with open(self.path, "rb") as file:  # opened anew: a shared disk would show old content
                file.seek(self.offset)
                new = file.read()
        except FileNotFoundError:
            return ""
        self.offset += len(new)
        return self.decoder.decode(new)


def describe_unmet(handles: Sequence[JobHandle]) -> tuple[list[str], list[str]]:
    """Numbers of the jobs to wait for, and words about those that will never complete."""
    waited, failed = [], []
    for handle in handles:
        state = tell_state(handle)
        job_id = str(find_current(handle).job.get("id", ""))
        if state.state == COMPLETED:
            continue
        if state.is_final or not job_id:
            failed.append(f"{handle.run_dir.name} is {state.state}")
        else:
            waited.append(job_id)
    return waited, failed
