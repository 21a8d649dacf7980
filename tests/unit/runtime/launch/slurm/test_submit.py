"""Submission through submitit, and what stands in its way; Slurm's commands are stand-ins."""

from __future__ import annotations

import inspect
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from nemotron_style.runtime.errors import StepFailed
from nemotron_style.runtime.launch.base import JobHandle, attempt_of
from nemotron_style.runtime.launch.slurm import check
from nemotron_style.runtime.launch.slurm.client import SlurmError, submit
from nemotron_style.runtime.launch.slurm.launcher import SlurmLauncher
from nemotron_style.runtime.planning.planner import compile_pipeline
from nemotron_style.runtime.planning.request import RunRequest
from nemotron_style.runtime.run.folder import RunFolder
from nemotron_style.runtime.run.plan import Plan

pytest.importorskip("submitit")


@pytest.fixture(autouse=True)
def no_job_is_known(commands: Any) -> None:
    """Slurm answers, and has no job to tell of."""
    for name in ("squeue", "sacct"):
        commands.set(name, "")


@pytest.fixture
def launcher() -> SlurmLauncher:
    return SlurmLauncher()


def plan_grow(mill: Any, *overrides: str, **profile: Any) -> Plan:
    request = RunRequest("mill/grow", overrides=overrides)
    context = mill.context(**profile)
    context = type(context)(**{**vars(context), "detached": True})
    plan = compile_pipeline(request, context=context).target.plan
    assert isinstance(plan, Plan)
    return plan.model_copy(update={"executor": "slurm", "site": profile})


def test_submitit_offers_publicly_what_is_used_of_it() -> None:
    from submitit.helpers import CommandFunction

    parameters = inspect.signature(CommandFunction).parameters
    assert {"command", "verbose", "env"} <= set(parameters)
    with pytest.raises(RuntimeError, match="no such account"):
        CommandFunction(["sh", "-c", "echo no such account >&2; exit 1"], verbose=False)()


def test_sbatch_gets_the_command_as_it_is_and_only_the_chosen_environment(
    commands: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LEFT_OUT", "1")
    before = dict(os.environ)
    chosen = {"PATH": os.environ["PATH"], "TAKEN": "2"}
    job_id = submit(["sbatch", "--parsable", "a b", "1"], environment=chosen)
    assert job_id == "41"
    assert commands.said == ["sbatch --parsable a b 1"]
    given = (commands.folder / "environment").read_text()
    assert "TAKEN=2" in given
    assert "LEFT_OUT" not in given
    assert dict(os.environ) == before


@pytest.mark.parametrize(("told", "job_id"), [("41", "41"), ("42;cluster", "42"), (" 43 ", "43")])
def test_the_number_of_the_job(commands: Any, told: str, job_id: str) -> None:
    commands.set("sbatch", f"echo '{told}'")
    assert submit(["sbatch"], environment=os.environ.copy()) == job_id


def test_nonsense_is_a_refusal(commands: Any, capsys: pytest.CaptureFixture[str]) -> None:
    before = dict(os.environ)
    commands.set("sbatch", "echo Submitted batch job 41")
    with pytest.raises(SlurmError, match="gave no number of a job but 'Submitted batch job 41'"):
        submit(["sbatch"], environment=os.environ.copy())
    commands.set("sbatch", "echo 'sbatch: error: no such account' >&2; exit 1")
    with pytest.raises(SlurmError, match="sbatch: error: no such account"):
        submit(["sbatch"], environment=os.environ.copy())
    (commands.folder / "sbatch").unlink()
    with pytest.raises(SlurmError):
        submit(["sbatch-that-is-nowhere"], environment=os.environ.copy())
    assert capsys.readouterr() == ("", "")
    assert dict(os.environ) == before


def test_a_submission_leaves_the_handle(mill: Any, commands: Any, launcher: SlurmLauncher) -> None:
    plan = plan_grow(mill)
    request = launcher.compile(plan)
    handle = launcher.submit(request)
    place = {"name": plan.run_id, "folder": str(plan.run_dir)}
    assert attempt_of(handle).job == {"executor": "slurm", "id": "41", **place}
    assert attempt_of(handle).record["executor"] == "slurm"
    for name, text in request.files.items():
        assert (plan.run_dir / name).read_text() == text
    said = [f"sbatch --parsable {plan.run_dir}/job.sbatch 1", "scontrol write batch_script 41 -"]
    assert commands.said[1:] == said
    again = SlurmLauncher().submit(launcher.compile(plan, attempt=2))
    assert again == handle
    assert [line for line in commands.said if line.startswith("sbatch")] == said[:1]


def test_a_script_that_slurm_changed_is_taken_back(
    mill: Any, commands: Any, launcher: SlurmLauncher
) -> None:
    commands.set("scontrol", "echo '#!/bin/bash'")
    plan = plan_grow(mill)
    with pytest.raises(StepFailed, match="changed the script of job 41, so it was cancelled"):
        launcher.submit(launcher.compile(plan))
    assert "scancel 41" in commands.said
    last = RunFolder(plan.run_dir).last_attempt
    assert last is not None
    assert last.record["state"] == "FAILED"


def test_a_script_that_slurm_kept_is_fine(
    mill: Any, commands: Any, launcher: SlurmLauncher
) -> None:
    plan = plan_grow(mill)
    commands.set("scontrol", f"cat '{plan.run_dir}/job.sbatch'")
    assert launcher.submit(launcher.compile(plan)).attempt == 1
    assert not [line for line in commands.said if line.startswith("scancel")]


def test_a_refusal_closes_the_attempt_and_the_next_one_is_free(
    mill: Any, commands: Any, launcher: SlurmLauncher
) -> None:
    plan = plan_grow(mill)
    commands.set("sbatch", "echo 'sbatch: error: Invalid account' >&2; exit 1")
    with pytest.raises(StepFailed, match="not submitted: sbatch: error: Invalid account"):
        launcher.submit(launcher.compile(plan))
    commands.set("sbatch", "echo 42")
    assert launcher.submit(launcher.compile(plan, attempt=2)).attempt == 2


def test_a_missing_submitit_closes_the_attempt_too(
    mill: Any, commands: Any, launcher: SlurmLauncher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "submitit.helpers", None)
    with pytest.raises(StepFailed, match="submitit"):
        launcher.submit(launcher.compile(plan_grow(mill)))


def test_jobs_wait_for_those_that_are_still_to_complete(
    mill: Any, commands: Any, launcher: SlurmLauncher
) -> None:
    first = launcher.submit(launcher.compile(plan_grow(mill, "steps=1")))
    done = JobHandle("slurm", first.run_dir.parent / "done", 1)
    (done.run_dir / "attempts" / "1").mkdir(parents=True)
    (done.run_dir / "outputs.json").write_text("{}")
    commands.set("sbatch", "echo 42")
    plan = plan_grow(mill, "steps=2")
    shown = f"JobId=41 JobName={first.run_dir.name} JobState=PENDING WorkDir={first.run_dir}"
    commands.set(
        "scontrol",
        f'if [ "$1" = write ]; then cat "{plan.run_dir}/job.sbatch"; else echo "{shown}"; fi',
    )
    launcher.submit(launcher.compile(plan), after=[first, done])
    flags = "--dependency=afterok:41 --kill-on-invalid-dep=yes"
    assert f"sbatch --parsable {flags} {plan.run_dir}/job.sbatch 1" in commands.said


def test_what_needs_a_failed_run_is_not_submitted(
    mill: Any, commands: Any, launcher: SlurmLauncher
) -> None:
    first = launcher.submit(launcher.compile(plan_grow(mill, "steps=1")))
    attempt_of(first).close("FAILED")
    shown = f"JobId=41 JobName={first.run_dir.name} JobState=FAILED WorkDir={first.run_dir}"
    commands.set("scontrol", f"echo '{shown}'")
    with pytest.raises(StepFailed, match=f"needs other runs: {first.run_dir.name} is FAILED"):
        launcher.submit(launcher.compile(plan_grow(mill, "steps=2")), after=[first])


def test_what_a_machine_lacks_is_told_with_the_remedy(
    mill: Any, launcher: SlurmLauncher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = plan_grow(mill, tunnel="ssh")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(check.util, "find_spec", lambda name: None)
    problems = [*launcher.check(plan)]
    assert [problem.key for problem in problems] == ["executor", "executor"]
    assert "not sent through ssh" in problems[0].fix
    assert "sbatch, scontrol, squeue, scancel" in problems[0].what
    assert problems[1].fix == "pip install 'nemotron-style[slurm]'"


def test_slurm_is_asked_before_anything_is_submitted(
    mill: Any, commands: Any, launcher: SlurmLauncher
) -> None:
    plan = plan_grow(mill)
    commands.set(
        "sbatch", f"cp \"$2\" '{commands.folder}/tried'\necho allocation failure >&2; exit 1"
    )
    (problem,) = launcher.check(plan)
    assert problem.got == "sbatch: allocation failure"
    assert (commands.folder / "tried").read_text() == launcher.compile(plan).files["job.sbatch"]
    assert not plan.run_dir.exists()
    commands.set("sbatch", "")
    assert [*launcher.check(plan)] == []
