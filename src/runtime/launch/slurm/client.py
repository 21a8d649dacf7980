"""Slurm's commands: submit and cancel a job, and read what the queue says about it.

sbatch is called by submitit's public ``CommandFunction``, with an environment of our own and a
script that is final. The rest of submitit is not used, for these reasons:

* its executors write the batch script themselves, around a pickled function; to have them submit
  our text takes private hooks, and they pass on the environment of this process;
* its job handles ask ``sacct``, which a cluster need not have, and know neither exit codes nor
  reasons; a run's own files and ``scontrol`` do, also after the process that submitted it is gone;
* its cancel shows scancel's complaint about a job that has just ended, and cannot force.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import subprocess
from collections.abc import Mapping, Sequence
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
    JobState,
)
from nemotron_style.runtime.shell_environment import clean_environment

SECONDS_TO_ANSWER = 60
NO_OUTPUT = "53"  # the signal with which slurmd says that it could not open the job's log
LAST_SIGNAL = 15  # what Slurm writes as a signal beyond it is a message of its own

# Slurm's words for the state of a job, by ours; any other means that it runs.
WORDS = {
    PENDING: "PENDING CONFIGURING RESV_DEL_HOLD",
    REQUEUED: "REQUEUED REQUEUE_FED REQUEUE_HOLD SPECIAL_EXIT",
    RUNNING: "RUNNING COMPLETING RESIZING SIGNALING STAGE_OUT STOPPED SUSPENDED",
    COMPLETED: "COMPLETED",
    CANCELLED: "CANCELLED PREEMPTED REVOKED",
    TIMEOUT: "TIMEOUT DEADLINE",
    FAILED: "FAILED BOOT_FAIL LAUNCH_FAILED NODE_FAIL OUT_OF_MEMORY RECONFIG_FAIL",
}
STATES = {word: state for state, words in WORDS.items() for word in words.split()}
# States whose name says more than ours does.
REASONS = {
    "BOOT_FAIL": "a node did not boot",
    "DEADLINE": "reached its deadline",
    "LAUNCH_FAILED": "Slurm could not launch it",
    "NODE_FAIL": "a node failed",
    "OUT_OF_MEMORY": "out of memory",
    "PREEMPTED": "another job took its place",
    "RECONFIG_FAIL": "a node could not be configured",
    "TIMEOUT": "reached its time limit",
}


class SlurmError(StepFailed):
    """A command of Slurm failed, gave no answer, or one that says nothing about the job."""


def submit(argv: Sequence[str], *, environment: Mapping[str, str]) -> str:
    """Run sbatch as ``argv`` with exactly this environment; the number of the job.

    Raises ``SlurmError`` with sbatch's own words when it refuses, and ``ImportError`` where
    submitit is not installed.
    """
    from submitit.helpers import CommandFunction

    command = CommandFunction(list(argv), verbose=False, env=dict(environment))
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # the error has the same words
            answer = str(command())
    except (OSError, RuntimeError) as error:
        raise SlurmError(str(error).strip() or "sbatch failed without a word") from None
    number = re.match(r"\s*(\d+)(?:;|\s*$)", answer)  # 123, or 123;cluster
    if number is None:
        raise SlurmError(f"sbatch gave no number of a job but {answer!r}")
    return number[1]


def cancel_job(job_id: str, *, force: bool) -> None:
    """``scancel``; one that is over already is no error. Raises ``SlurmError``."""
    for flags in [["--signal=KILL", "--full"], []] if force else [[]]:
        try:
            run_command(["scancel", *flags, job_id])
        except SlurmError as error:
            if not any(word in str(error) for word in ("completed", "completing", "Invalid job")):
                raise


def query_job(job_id: str) -> JobState | None:
    """The state of a job; None when Slurm knows it no more. Raises ``SlurmError``."""
    try:
        shown = run_command(["scontrol", "--oneliner", "show", "job", job_id])
    except SlurmError as error:
        if "Invalid job id" in str(error):
            return _query_accounting(job_id)
        raise
    return parse_job(shown)


def parse_job(shown: str) -> JobState | None:
    """A line of ``scontrol --oneliner show job``; None when it is none."""
    # The first match of each: what a user may have written into the job (its paths) comes later.
    names = ("JobState", "Reason", "Restarts", "ExitCode")
    matches = [re.search(rf"(?:^|\s){name}=(\S*)", shown) for name in names]
    word, reason, restarts, exit_code = (match[1] if match else "" for match in matches)
    if not word:
        return None
    state = STATES.get(word, RUNNING)
    if state == PENDING and restarts not in ("", "0"):
        state = REQUEUED
    return _read_state(state, word, "" if reason == "None" else reason, exit_code)


def find_jobs(name: str, folder: Path) -> list[str]:
    """Numbers of the jobs with this name and work directory, newest last; ``SlurmError``."""
    words = ["squeue", "--noheader", "--states=all", f"--name={name}", "--format=%A %Z"]
    pairs = (line.partition(" ") for line in run_command(words).splitlines())
    return sorted({job for job, _, place in pairs if place == str(folder)}, key=int)


def read_batch_script(job_id: str) -> str:
    """The script that Slurm keeps for a job. Raises ``SlurmError``."""
    return run_command(["scontrol", "write", "batch_script", job_id, "-"])


def run_command(words: Sequence[str], *, environment: Mapping[str, str] | None = None) -> str:
    """The output of a command. Raises ``SlurmError`` with the command's own words."""
    try:
        done = subprocess.run(
            words,
            stdin=subprocess.DEVNULL,
            env=clean_environment(os.environ if environment is None else environment),
            capture_output=True,
            timeout=SECONDS_TO_ANSWER,
            check=False,
        )
    except FileNotFoundError:
        raise SlurmError(f"{words[0]} is not installed on this machine") from None
    except subprocess.TimeoutExpired:
        raise SlurmError(f"{words[0]} gave no answer in {SECONDS_TO_ANSWER} seconds") from None
    if done.returncode != 0:
        message = done.stderr.decode(errors="replace").strip()
        raise SlurmError(f"{words[0]}: {message or f'exit code {done.returncode}'}")
    return done.stdout.decode(errors="surrogateescape")


def _query_accounting(job_id: str) -> JobState | None:
    """The state of a job that the queue has forgotten, where the cluster keeps accounts."""
    words = ["sacct", "--noheader", "--parsable2", "--allocations", f"--jobs={job_id}"]
    try:
        lines = run_command([*words, "--format=State,ExitCode"]).splitlines()
    except SlurmError:
        return None
    shown, _, exit_code = lines[-1].partition("|") if lines else ("", "", "")
    word = shown.partition(" ")[0]  # CANCELLED by 1000
    return _read_state(STATES[word], word, "", exit_code) if word in STATES else None


def _read_state(state: str, word: str, reason: str, exit_code: str) -> JobState:
    """``exit_code`` as Slurm writes it: the code, a colon, the signal."""
    code, _, signal = exit_code.partition(":")
    reason = REASONS.get(word, reason)
    if state not in (COMPLETED, FAILED):
        return JobState(state, None, reason)
    if signal == NO_OUTPUT:
        reason = "Slurm could not open the job's log; do the nodes see the store?"
    number = int(code or 0)
    if number == 0 and signal.isdigit() and 0 < int(signal) <= LAST_SIGNAL:
        number = 128 + int(signal)
    return JobState(state, number if number or state == COMPLETED else None, reason)
