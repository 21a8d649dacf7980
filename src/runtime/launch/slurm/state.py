"""The state of a Slurm job, and its log as it grows: first from our own files, then from Slurm."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from nemotron_style.runtime.atomic import read_json
from nemotron_style.runtime.launch.base import JobHandle, attempt_of
from nemotron_style.runtime.launch.log import LogReader, Question
from nemotron_style.runtime.launch.slurm.client import Answer, SlurmError, ask, find_jobs
from nemotron_style.runtime.launch.slurm.handle import SlurmHandle, read_handle
from nemotron_style.runtime.run.attempt import Attempt
from nemotron_style.runtime.run.folder import RunFolder
from nemotron_style.runtime.run.state import CANCELLED, COMPLETED, FAILED, FINAL, LOST, JobState

SECONDS_BETWEEN_LOOKS = 0.2
SECONDS_BETWEEN_QUESTIONS = 2.0
SECONDS_UNTIL_FILES_SHOW = 60  # those of another machine may show up this much later
EXIT_OF_A_STOP = 130


def read_states(handles: Sequence[JobHandle]) -> list[JobState]:
    """The states of runs: COMPLETED as soon as outputs exist, else those of their jobs.

    Slurm is asked once for all of them.
    """
    done = [RunFolder(handle.run_dir).outputs is not None for handle in handles]
    jobs = iter(read_job_states([at for at, over in zip(handles, done, strict=True) if not over]))
    return [JobState(COMPLETED, 0) if over else next(jobs) for over in done]


def read_job_states(handles: Sequence[JobHandle]) -> list[JobState]:
    """The states of jobs, across all the times that Slurm started them. Reads only."""
    attempts = [find_current(handle) for handle in handles]
    ends = [read_end(attempt) for attempt in attempts]
    asked = [attempt for attempt, end in zip(attempts, ends, strict=True) if not end]
    answer: Answer | SlurmError = Answer()
    if asked:
        try:
            answer = ask(filter(None, (read_handle(attempt).id for attempt in asked)))
        except SlurmError as error:
            answer = error
    return [
        end or read_job_state(attempt, answer) for attempt, end in zip(attempts, ends, strict=True)
    ]


def read_job_state(attempt: Attempt, answer: Answer | SlurmError) -> JobState:
    """The state of a job that did not write its end, by what Slurm answered."""
    try:
        if isinstance(answer, SlurmError):
            raise answer
        job = find_job(attempt, answer)
    except SlurmError as error:
        reason = f"no news from Slurm: {error}"
        return JobState(attempt.recorded_state, reason=reason, stale=True)
    if job.doubt:
        return JobState(attempt.recorded_state, reason=job.doubt, stale=True)
    if job.state and job.state.state not in FINAL:
        return JobState(job.state.state, reason=job.state.reason)
    # The job may have ended while Slurm was asked.
    return read_end(attempt) or attempt.recorded_end or conclude(attempt, job)


def conclude(attempt: Attempt, job: Job) -> JobState:
    """The end of a job whose script could not record it."""
    job_id, state = job.id, job.state
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
    job = read_handle(first)
    later = [
        attempt
        for attempt in RunFolder(handle.run_dir).attempts
        if attempt.number > handle.attempt and job.id and is_same_job(read_handle(attempt), job)
    ]
    return later[-1] if later else first


def is_same_job(one: SlurmHandle, other: SlurmHandle) -> bool:
    """Whether two attempts are of one job; on two clusters the same number is two jobs."""
    clusters = {one.cluster, other.cluster} - {""}
    return one.id == other.id and len(clusters) < 2


@dataclass(frozen=True)
class Job:
    """What Slurm says about the job of an attempt; ``state`` is None when it knows no such job.

    ``id`` is "" when there is none. ``doubt`` says why this machine's Slurm cannot speak for it:
    then nothing follows from its silence, and no command may name its number.
    """

    id: str
    state: JobState | None = None
    doubt: str = ""


def find_job(attempt: Attempt, answer: Answer | None = None) -> Job:
    """The job of an attempt, also where who submitted it died before its number was written.

    Raises ``SlurmError`` when Slurm has to be asked and does not answer.
    """
    handle = read_handle(attempt)
    if answer is None:
        answer = ask(filter(None, [handle.id]))
    if handle.id or handle.is_elsewhere(answer):
        doubt = handle.explain_doubt(answer)
        shown = handle.find(answer)
        return Job(handle.id, shown.state if shown else None, doubt)
    folder = RunFolder(attempt.run_dir)
    others = {read_handle(other).id for other in folder.attempts}
    place = Path(handle.folder) if handle.folder else folder.path
    unknown = [job for job in find_jobs(handle.name, place) if job not in others]
    if not unknown:
        return Job("", None, handle.explain_doubt(answer))
    shown = ask(unknown[-1:]).jobs.get(unknown[-1])
    return Job(unknown[-1], shown.state if shown else None)


def is_young(attempt: Attempt) -> bool:
    """Whether something happened here so lately that there may be more to come."""
    if "id" not in attempt.job and attempt.may_be_submitted:
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
        lambda: read_job_states([handle])[0].is_final,
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
    """Numbers of the jobs to wait for, and a note on each run that cannot be waited for."""
    waited, failed = [], []
    for handle, state in zip(handles, read_states(handles), strict=True):
        job_id = read_handle(find_current(handle)).id
        if state.state == COMPLETED:
            continue
        if state.stale:  # on another cluster its number is somebody else's job
            failed.append(f"{handle.run_dir.name} cannot be waited for: {state.reason}")
        elif state.is_final or not job_id:
            failed.append(f"{handle.run_dir.name} is {state.state}")
        else:
            waited.append(job_id)
    return waited, failed
