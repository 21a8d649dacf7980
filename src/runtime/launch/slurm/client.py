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
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
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
SECONDS_TO_SHOW = 10  # Slurm's own tools give up on a controller that is down after twice that
PROMPT = "scontrol: "
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


@dataclass(frozen=True)
class ShownJob:
    """A job as Slurm shows it; ``folder`` is its work directory."""

    name: str
    folder: str
    state: JobState


@dataclass(frozen=True)
class Answer:
    """What this machine's Slurm says: which cluster it is, and jobs by number.

    ``controller`` is the host and port of slurmctld. What Slurm does not say is empty.
    """

    cluster: str = ""
    controller: str = ""
    jobs: Mapping[str, ShownJob] = field(default_factory=dict)


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


def ask(job_ids: Iterable[str] = ()) -> Answer:
    """Which cluster this machine's Slurm is, and the jobs with these numbers: one command for all.

    Raises ``SlurmError`` when Slurm does not answer, or only in part.
    """
    wanted = list(dict.fromkeys(job_ids))
    questions = ["show config", *(f"show job {job_id}" for job_id in wanted)]
    shown, complaints = _talk("".join(f"{question}\n" for question in questions))
    facts = dict(re.findall(r"^(\w+)(?:\[0\])?\s+= (\S*)", shown, re.MULTILINE))
    host, port = facts.get("SlurmctldHost", ""), facts.get("SlurmctldPort", "")
    jobs = dict(filter(None, map(parse_job, shown.splitlines())))
    # Whatever else kept a job from being shown, it is no reason to call the job gone.
    if len(jobs) + complaints.count("Invalid job id") < len(wanted):
        raise SlurmError(f"scontrol: {complaints or 'answered in part only'}")
    forgotten = [job_id for job_id in wanted if job_id not in jobs]
    jobs = _query_accounting(forgotten) | jobs if forgotten else jobs
    return Answer(facts.get("ClusterName", ""), f"{host}:{port}" if host else "", jobs)


def parse_job(line: str) -> tuple[str, ShownJob] | None:
    """The number and the job of a line of ``scontrol --oneliner show job``; None for any other."""
    # The first match of each: what a user may have written into the job (its paths) comes later.
    number = re.match(r"JobId=(\d+)", line.removeprefix(PROMPT))
    names = ("JobName", "JobState", "Reason", "Restarts", "ExitCode")
    matches = [re.search(rf"(?:^|\s){name}=(\S*)", line) for name in names]
    name, word, reason, restarts, exit_code = (match[1] if match else "" for match in matches)
    if not number or not word:
        return None
    state = STATES.get(word, RUNNING)
    if state == PENDING and restarts not in ("", "0"):
        state = REQUEUED
    folder = re.search(r"\sWorkDir=(.*?)(?=\s+[A-Z]\w*=|\s*$)", line)
    read = _read_state(state, word, "" if reason == "None" else reason, exit_code)
    return number[1], ShownJob(name, folder[1] if folder else "", read)


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
    done = _call(words, environment=environment)
    if done.returncode != 0:
        message = done.stderr.decode(errors="replace").strip()
        raise SlurmError(f"{words[0]}: {message or f'exit code {done.returncode}'}")
    return done.stdout.decode(errors="surrogateescape")


def _talk(questions: str) -> tuple[str, str]:
    """What scontrol shows, and what it complains of, when it is asked several things at once."""
    done = _call(["scontrol", "--oneliner"], questions, seconds=SECONDS_TO_SHOW)
    shown, complaints = (
        text.decode(errors="surrogateescape") for text in (done.stdout, done.stderr)
    )
    if not shown.strip() and "Invalid job id" not in complaints:
        raise SlurmError(f"scontrol: {complaints.strip() or f'exit code {done.returncode}'}")
    return shown, complaints.strip()


def _call(
    words: Sequence[str],
    text: str = "",
    *,
    environment: Mapping[str, str] | None = None,
    seconds: float | None = None,
) -> subprocess.CompletedProcess[bytes]:
    limit = SECONDS_TO_ANSWER if seconds is None else seconds
    try:
        return subprocess.run(
            words,
            input=text.encode(),
            env=clean_environment(os.environ if environment is None else environment),
            capture_output=True,
            timeout=limit,
            check=False,
        )
    except FileNotFoundError:
        raise SlurmError(f"{words[0]} is not installed on this machine") from None
    except subprocess.TimeoutExpired:
        raise SlurmError(f"{words[0]} gave no answer in {limit:g} seconds") from None


def _query_accounting(job_ids: Sequence[str]) -> dict[str, ShownJob]:
    """Jobs that the queue has forgotten, where the cluster keeps accounts."""
    words = ["sacct", "--noheader", "--parsable2", "--allocations", f"--jobs={','.join(job_ids)}"]
    words.append("--format=JobIDRaw,JobName,State,ExitCode,WorkDir")
    try:
        lines = run_command(words).splitlines()
    except SlurmError:
        return {}
    jobs = {}
    for fields in (line.split("|", 4) for line in lines if line.count("|") >= 4):
        number, name, shown, exit_code, folder = fields
        word = shown.partition(" ")[0]  # CANCELLED by 1000
        if word in STATES:
            jobs[number] = ShownJob(name, folder, _read_state(STATES[word], word, "", exit_code))
    return jobs


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
