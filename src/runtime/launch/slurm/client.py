"""What Slurm's queue says about jobs. Everything here reads only."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from nemotron_style.runtime.errors import StepFailed
from nemotron_style.runtime.run.state import (
    CANCELLED,
    COMPLETED,
    FAILED,
    PENDING,
    REQUEUED,
    RUNNING,
    TIMEOUT,
)

SECONDS_TO_ANSWER = 60
# How slurmd says that it could not open the file for a job's output.
NO_OUTPUT = 53
LAST_SIGNAL = 15  # what Slurm writes as a signal beyond it is a message of its own

STATES = {
    "PENDING": PENDING,
    "CONFIGURING": PENDING,
    "RESV_DEL_HOLD": PENDING,
    "REQUEUED": REQUEUED,
    "REQUEUE_FED": REQUEUED,
    "REQUEUE_HOLD": REQUEUED,
    "SPECIAL_EXIT": REQUEUED,
    "RUNNING": RUNNING,
    "COMPLETING": RUNNING,
    "RESIZING": RUNNING,
    "SIGNALING": RUNNING,
    "STAGE_OUT": RUNNING,
    "STOPPED": RUNNING,
    "SUSPENDED": RUNNING,
    "COMPLETED": COMPLETED,
    "CANCELLED": CANCELLED,
    "PREEMPTED": CANCELLED,
    "REVOKED": CANCELLED,
    "TIMEOUT": TIMEOUT,
    "DEADLINE": TIMEOUT,
    "FAILED": FAILED,
    "BOOT_FAIL": FAILED,
    "LAUNCH_FAILED": FAILED,
    "NODE_FAIL": FAILED,
    "OUT_OF_MEMORY": FAILED,
    "RECONFIG_FAIL": FAILED,
}
# States whose name says more than ours does.
TELLING = {
    "BOOT_FAIL": "a node did not boot",
    "DEADLINE": "reached its deadline",
    "LAUNCH_FAILED": "Slurm could not launch it",
    "NODE_FAIL": "a node failed",
    "OUT_OF_MEMORY": "out of memory",
    "PREEMPTED": "another job took its place",
    "RECONFIG_FAIL": "a node could not be configured",
    "TIMEOUT": "reached its time limit",
}


class Silent(StepFailed):
    """Slurm gives no answer, or one that says nothing about the job."""


@dataclass(frozen=True)
class Seen:
    """A job as Slurm sees it; ``state`` is one of ours."""

    state: str
    exit_code: int | None = None
    reason: str = ""


def look_up(job_id: str) -> Seen | None:
    """A job by its number; None when Slurm knows it no more. Raises ``Silent``."""
    try:
        shown = ask(["scontrol", "--oneliner", "show", "job", job_id])
    except Silent as error:
        if "Invalid job id" in str(error):
            return _look_back(job_id)
        raise
    return parse_job(shown)


def parse_job(shown: str) -> Seen | None:
    """A line of ``scontrol --oneliner show job``; None when it is none.

    What a user may have written into the job (its paths) comes after what is read here.
    """
    found = {name: _field(name, shown) for name in ("JobState", "Reason", "Restarts", "ExitCode")}
    word = found["JobState"]
    if not word:
        return None
    state = STATES.get(word, RUNNING)
    if state == PENDING and found["Restarts"] not in ("", "0"):
        state = REQUEUED
    given = "" if found["Reason"] == "None" else found["Reason"]
    return _conclude(state, word, given, found["ExitCode"])


def find_jobs(name: str, folder: Path) -> list[str]:
    """Numbers of the jobs with this name and work directory, the newest last. Raises ``Silent``."""
    words = ["squeue", "--noheader", "--states=all", f"--name={name}", "--format=%A %Z"]
    pairs = (line.partition(" ") for line in ask(words).splitlines())
    return sorted({job for job, _, place in pairs if place == str(folder)}, key=int)


def read_batch_script(job_id: str) -> str:
    """The script that Slurm keeps for a job. Raises ``Silent``."""
    return ask(["scontrol", "write", "batch_script", job_id, "-"])


def ask(words: Sequence[str], *, environment: Mapping[str, str] | None = None) -> str:
    """The output of a command. Raises ``Silent`` with its own words when it fails."""
    try:
        done = subprocess.run(
            words,
            stdin=subprocess.DEVNULL,
            env=environment,
            capture_output=True,
            timeout=SECONDS_TO_ANSWER,
            check=False,
        )
    except FileNotFoundError:
        raise Silent(f"{words[0]} is not installed on this machine") from None
    except subprocess.TimeoutExpired:
        raise Silent(f"{words[0]} gave no answer in {SECONDS_TO_ANSWER} seconds") from None
    if done.returncode != 0:
        told = done.stderr.decode(errors="replace").strip()
        raise Silent(f"{words[0]}: {told or f'exit code {done.returncode}'}")
    return done.stdout.decode(errors="surrogateescape")


def _look_back(job_id: str) -> Seen | None:
    """The same from the accounting, where there is one."""
    words = ["sacct", "--noheader", "--parsable2", "--allocations", f"--jobs={job_id}"]
    try:
        lines = ask([*words, "--format=State,ExitCode"]).splitlines()
    except Silent:
        return None
    if not lines:
        return None
    told, _, code = lines[-1].partition("|")
    word = told.split()[0] if told.split() else ""  # CANCELLED by 1000
    return _conclude(STATES[word], word, "", code) if word in STATES else None


def _conclude(state: str, word: str, given: str, exit_code: str) -> Seen:
    """``exit_code`` as Slurm writes it: the code, a colon, the signal."""
    code, _, signal = exit_code.partition(":")
    reason = TELLING.get(word) or given
    if state not in (COMPLETED, FAILED):
        return Seen(state, None, reason)
    if signal == str(NO_OUTPUT):
        reason = "Slurm could not open the job's log; do the nodes see the store?"
    number = int(code or 0)
    if number == 0 and signal.isdigit() and 0 < int(signal) <= LAST_SIGNAL:
        number = 128 + int(signal)
    return Seen(state, number if number or state == COMPLETED else None, reason)


def _field(name: str, shown: str) -> str:
    found = re.search(rf"(?:^|\s){name}=(\S*)", shown)
    return found[1] if found else ""
