"""How a job stands by our files and by what Slurm's commands say; the commands are stand-ins."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from nemotron_style.runtime.errors import StepFailed
from nemotron_style.runtime.launch.base import JobHandle
from nemotron_style.runtime.launch.slurm import client, state
from nemotron_style.runtime.launch.slurm.client import SlurmError, ask, find_jobs, parse_job
from nemotron_style.runtime.launch.slurm.launcher import SlurmLauncher
from nemotron_style.runtime.run.attempt import Attempt
from nemotron_style.runtime.run.folder import RunFolder
from nemotron_style.runtime.run.state import JobState


def query_job(job_id: str) -> JobState | None:
    job = ask([job_id]).jobs.get(job_id)
    return job.state if job else None


UNKNOWN = "echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1"
DEAD = "echo 'Unable to contact slurm controller (connect failure)' >&2; exit 1"


@dataclass(frozen=True)
class Job:
    """An attempt that was submitted as job 7, and its launcher."""

    attempt: Attempt
    launcher: SlurmLauncher

    @property
    def handle(self) -> JobHandle:
        return JobHandle("slurm", self.attempt.path.parent.parent, 1)

    def write(self, name: str, **facts: Any) -> None:
        (self.attempt.path / name).write_text(json.dumps(facts))

    def age(self) -> None:
        """Nothing happened here for long."""
        for path in self.attempt.path.iterdir():
            os.utime(path, (time.time() - 1000, time.time() - 1000))

    @property
    def state(self) -> tuple[str, int | None, str]:
        state = self.launcher.state(self.handle)
        return state.state, state.exit_code, state.reason


@pytest.fixture
def job(tmp_path: Path, commands: Any) -> Iterator[Job]:
    folder = RunFolder(tmp_path / "runs" / "r-1")
    attempt = folder.claim_attempt(executor="slurm", detached=True)
    assert attempt is not None
    made = Job(attempt, SlurmLauncher())
    made.write("job.json", executor="slurm", id="7")
    yield made
    left = [path.name for path in attempt.path.iterdir() if "attempt.json." in path.name]
    assert left == []


@pytest.mark.parametrize(
    ("word", "fields", "seen"),
    [
        ("PENDING", {"Reason": "Priority"}, JobState("PENDING", None, "Priority")),
        (
            "PENDING",
            {"Reason": "BeginTime", "Restarts": 1},
            JobState("REQUEUED", None, "BeginTime"),
        ),
        ("CONFIGURING", {}, JobState("PENDING")),
        ("RUNNING", {}, JobState("RUNNING")),
        ("COMPLETING", {}, JobState("RUNNING")),
        ("SUSPENDED", {}, JobState("RUNNING")),
        ("A_NEW_WORD", {}, JobState("RUNNING")),
        ("REQUEUE_HOLD", {}, JobState("REQUEUED")),
        ("COMPLETED", {}, JobState("COMPLETED", 0)),
        ("FAILED", {"ExitCode": "3:0"}, JobState("FAILED", 3)),
        ("FAILED", {"ExitCode": "0:9"}, JobState("FAILED", 137)),
        ("NODE_FAIL", {}, JobState("FAILED", None, "a node failed")),
        ("BOOT_FAIL", {}, JobState("FAILED", None, "a node did not boot")),
        ("OUT_OF_MEMORY", {"ExitCode": "0:125"}, JobState("FAILED", None, "out of memory")),
        ("CANCELLED", {}, JobState("CANCELLED")),
        ("PREEMPTED", {}, JobState("CANCELLED", None, "another job took its place")),
        ("TIMEOUT", {}, JobState("TIMEOUT", None, "reached its time limit")),
        ("DEADLINE", {}, JobState("TIMEOUT", None, "reached its deadline")),
    ],
)
def test_every_word_of_slurm_is_one_of_ours(
    commands: Any, word: str, fields: dict[str, Any], seen: JobState
) -> None:
    commands.show(state=word, **fields)
    assert query_job("7") == seen


def test_a_job_that_could_not_write_its_log_says_so(commands: Any) -> None:
    commands.show(state="FAILED", ExitCode="0:53", Reason="NonZeroExitCode")
    seen = query_job("7")
    assert seen is not None
    assert "could not open the job's log" in seen.reason


def test_what_is_no_job_is_none() -> None:
    assert parse_job("something else") is None


@pytest.mark.parametrize(
    ("lines", "seen"),
    [
        ("7|r-1|CANCELLED by 1000|0:15|/x", JobState("CANCELLED")),
        ("7|r-1|NODE_FAIL|1:0|/x\n7|r-1|FAILED|4:0|/x|y", JobState("FAILED", 4)),
        ("7|r-1|UNHEARD|0:0|/x", None),
        ("", None),
    ],
)
def test_the_accounting_is_asked_for_what_the_queue_forgot(
    commands: Any, lines: str, seen: JobState | None
) -> None:
    commands.set("scontrol", UNKNOWN)
    commands.set("sacct", f"printf '{lines}'")
    assert query_job("7") == seen


def test_no_accounting_and_no_job_is_none(commands: Any) -> None:
    commands.set("scontrol", UNKNOWN)
    assert query_job("7") is None


def test_silence_is_told_in_slurms_words(commands: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    commands.set("scontrol", DEAD)
    with pytest.raises(SlurmError, match="Unable to contact slurm controller"):
        query_job("7")
    commands.set("scontrol", "exit 4")
    with pytest.raises(SlurmError, match="scontrol: exit code 4"):
        query_job("7")
    (commands.folder / "scontrol").unlink()
    monkeypatch.setenv("PATH", str(commands.folder))
    with pytest.raises(SlurmError, match="scontrol is not installed"):
        query_job("7")


def test_a_command_that_hangs_is_given_up(commands: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "SECONDS_TO_SHOW", 0.1)
    commands.set("scontrol", "exec sleep 30")
    with pytest.raises(SlurmError, match=r"gave no answer in 0\.1 seconds"):
        query_job("7")


def test_jobs_are_found_by_name_and_place(commands: Any) -> None:
    commands.set("squeue", "printf '9 /store/a b\\n10 /store/a b\\n8 /store/other\\n'")
    assert find_jobs("r-1", Path("/store/a b")) == ["9", "10"]
    assert "--name=r-1" in commands.said[0]


def test_outputs_stand_before_everything(job: Job, commands: Any) -> None:
    job.write("batch.json", state="FAILED", exit_code=1)
    (job.handle.run_dir / "outputs.json").write_text("{}")
    assert job.state == ("COMPLETED", 0, "")
    assert commands.said == []


def test_a_log_ends_with_the_job_and_not_with_its_outputs(
    job: Job, commands: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(state, "SECONDS_BETWEEN_LOOKS", 0)
    commands.show(state="RUNNING")
    (job.handle.run_dir / "outputs.json").write_text("{}")
    text = job.launcher.logs(job.handle)
    assert next(text) == ""
    job.attempt.log.write_text("one last line\n")
    job.write("batch.json", state="COMPLETED", exit_code=0)
    assert "".join(text) == "one last line\n"


def test_what_the_script_wrote_last_is_final_without_asking_slurm(job: Job, commands: Any) -> None:
    job.write("batch.json", state="TIMEOUT", exit_code=124, reason="reached its time limit")
    assert job.state == ("TIMEOUT", 124, "reached its time limit")
    assert commands.said == []


def test_the_reason_of_a_failure_is_the_workers_if_it_spoke(job: Job) -> None:
    job.write("batch.json", state="FAILED", exit_code=41)
    (job.handle.run_dir / "job-7.txt").write_text("attempt 1 on n1\nsrun: it was srun\n")
    assert job.state == ("FAILED", 41, "srun: it was srun")
    job.write("failure-3.json", error="rank three", exit_code=2)
    assert job.state == ("FAILED", 41, "rank three")
    job.attempt.update(error="the mill stone broke")
    assert job.state == ("FAILED", 41, "the mill stone broke")


def test_a_job_without_any_output_still_has_the_log_of_its_worker(job: Job) -> None:
    job.write("batch.json", state="FAILED", exit_code=1)
    job.attempt.log.write_text("one\nno module named mill\n\n")
    (job.handle.run_dir / "job-7.txt").write_text("attempt 1 on n1\n")
    assert job.state == ("FAILED", 1, "no module named mill")


def test_slurm_knows_why_a_job_waits(job: Job, commands: Any) -> None:
    commands.show(state="PENDING", Reason="Priority")
    assert job.state == ("PENDING", None, "Priority")


def test_a_killed_script_leaves_the_end_to_slurm(job: Job, commands: Any) -> None:
    job.write("batch.json", state="REQUEUED", exit_code=None, reason="the time limit is near")
    commands.show(state="TIMEOUT")
    assert job.state == ("TIMEOUT", None, "reached its time limit")
    commands.show(state="FAILED", ExitCode="0:9", Reason="NonZeroExitCode")
    (job.handle.run_dir / "job-7.txt").write_text("slurmstepd: oom_kill event\n")
    assert job.state == ("FAILED", 137, "slurmstepd: oom_kill event")
    job.write("cancel.json", asked=1)
    assert job.state == ("CANCELLED", 130, "cancelled")


def test_a_workers_own_end_counts_when_slurm_has_nothing_better(job: Job, commands: Any) -> None:
    job.attempt.close("FAILED", exit_code=2, error="wet grain")
    commands.show(state="RUNNING")
    assert job.state == ("RUNNING", None, "")  # the others may still be at work
    commands.set("scontrol", UNKNOWN)
    assert job.state == ("FAILED", 2, "wet grain")


def test_a_dependency_that_cannot_be_met_is_told(job: Job, commands: Any) -> None:
    commands.show(state="CANCELLED", Reason="DependencyNeverSatisfied")
    assert job.state == ("CANCELLED", None, "a job that it waited for did not complete")


def test_a_forgotten_job_is_lost_after_a_while(job: Job, commands: Any) -> None:
    commands.set("scontrol", UNKNOWN)
    assert job.state == ("PENDING", None, "")
    job.age()
    assert job.state == ("LOST", None, "Slurm knows no such job")


def test_no_answer_is_no_end(job: Job, commands: Any) -> None:
    commands.set("scontrol", DEAD)
    job.age()
    state, _, reason = job.state
    assert state == "PENDING"
    assert reason.startswith("no news from Slurm: scontrol: Unable to contact")


def test_an_attempt_that_never_got_a_job_is_lost_when_its_launcher_is_gone(
    job: Job, commands: Any
) -> None:
    (job.attempt.path / "job.json").unlink()
    commands.set("squeue", "")
    commands.set("scontrol", UNKNOWN)
    assert job.state == ("PENDING", None, "being submitted")
    job.attempt.update(launcher={})
    job.age()
    assert job.state == ("LOST", None, "never submitted")
    commands.set("squeue", f"echo '12 {job.handle.run_dir}'")
    commands.show(state="RUNNING", number=12)
    assert job.state == ("RUNNING", None, "")


def test_cancelling_notes_it_first_and_survives_a_job_that_just_ended(
    job: Job, commands: Any
) -> None:
    commands.show(state="RUNNING")
    commands.set("scancel", "echo 'scancel: error: Job/step already completed' >&2; exit 1")
    job.launcher.cancel(job.handle, force=True)
    assert job.attempt.is_cancelled
    assert [line for line in commands.said if line.startswith("scancel")] == [
        "scancel --signal=KILL --full 7",
        "scancel 7",
    ]
    commands.set("scancel", DEAD)
    with pytest.raises(StepFailed, match="Unable to contact"):
        job.launcher.cancel(job.handle)


def test_cancelling_what_is_over_does_nothing(job: Job, commands: Any) -> None:
    job.write("batch.json", state="COMPLETED", exit_code=0)
    job.launcher.cancel(job.handle)
    assert commands.said == []
    assert not job.attempt.is_cancelled


def test_a_log_of_many_attempts_is_one(
    job: Job, commands: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(state, "SECONDS_BETWEEN_LOOKS", 0)
    monkeypatch.setattr(state, "SECONDS_BETWEEN_QUESTIONS", 0)
    commands.show(state="RUNNING")
    whole = "Grüße\n".encode()
    job.attempt.log.write_bytes(whole[:3])
    text = job.launcher.logs(job.handle)
    assert next(text) == "Gr"
    with open(job.attempt.log, "ab") as log:
        log.write(whole[3:])
    assert next(text) == "üße\n"
    assert next(text) == ""
    second = job.attempt.path.with_name("2")
    second.mkdir()
    (second / "job.json").write_text('{"id": "7"}')
    assert next(text) == "--- attempt 2: Slurm started the job again ---\n"
    assert next(text) == ""
    (second / "log-0.txt").write_text("more\n")
    (second / "batch.json").write_text('{"state": "COMPLETED", "exit_code": 0}')
    assert "".join(text) == "more\n"


def test_a_job_that_never_reached_a_worker_has_slurms_words_as_its_log(job: Job) -> None:
    job.write("batch.json", state="FAILED", exit_code=1)
    (job.handle.run_dir / "job-7.txt").write_text("slurmstepd: no such image\n")
    assert "".join(job.launcher.logs(job.handle)) == "slurmstepd: no such image\n"
    assert "".join(job.launcher.logs(job.handle, node=3)) == "slurmstepd: no such image\n"
