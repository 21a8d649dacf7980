"""Steps as jobs of a real Slurm, from submission to their end."""

from __future__ import annotations

import json
from typing import Any

import pytest

from nemotron_style.runtime.errors import StepFailed
from nemotron_style.runtime.launch.base import attempt_of
from nemotron_style.runtime.launch.status import read_status
from nemotron_style.runtime.run.folder import RunFolder
from waiting import until


def test_a_detached_job_commits_its_artifact(site: Any) -> None:
    handle = site.submit("mill/grow", cpus_per_task=1, time="00:05:00")
    state = site.wait(handle)
    assert (state.state, state.exit_code) == ("COMPLETED", 0), site.told(handle)
    site.cluster.await_state(site.job_id(handle), "COMPLETED")
    artifact = site.mill.store.output_of(handle.run_dir.name, "sack")
    assert (artifact.path / "sack.txt").read_text().endswith(" 10\n")
    attempt = attempt_of(handle)
    assert attempt.record["state"] == "COMPLETED"
    assert attempt.record["executor"] == "slurm"
    place = {"name": handle.run_dir.name, "folder": str(handle.run_dir), "cluster": "steps"}
    assert attempt.job.items() >= {"id": site.job_id(handle), **place}.items()
    assert (attempt.path / "exit-0").read_text() == "0\n"


def test_slurm_keeps_the_very_text_of_the_dry_run(site: Any) -> None:
    plan = site.plan("mill/grow", "steps=2")
    shown = site.launcher.compile(plan).render()
    handle = site.launcher.submit(site.launcher.compile(plan))
    kept = site.cluster.run("scontrol", "write", "batch_script", site.job_id(handle), "-")
    written = (handle.run_dir / "job.sbatch").read_text()
    assert kept == written
    assert f"# runs/{plan.run_id}/job.sbatch\n{written.rstrip()}\n" in shown
    assert shown.endswith(f"$ sbatch --parsable {handle.run_dir}/job.sbatch 1\n")
    job = site.cluster.job(site.job_id(handle))
    assert job["JobName"] == plan.run_id
    assert site.wait(handle).state == "COMPLETED"


def test_the_log_is_followed_to_the_end(site: Any) -> None:
    handle = site.submit("mill/grow", "pause=0.05")
    text = "".join(site.launcher.logs(handle))
    assert "4/4" in text
    assert site.launcher.state(handle).state == "COMPLETED"


@pytest.mark.parametrize(("override", "code"), [("raise_at=2", 1), ("refuse_at=1", 2)])
def test_a_step_that_fails_gives_its_own_exit_code(site: Any, override: str, code: int) -> None:
    handle = site.submit("mill/grow", override)
    state = site.wait(handle)
    assert (state.state, state.exit_code) == ("FAILED", code)
    assert state.reason in ("RuntimeError: the mill stone broke", "the grain is wet")
    job = site.cluster.await_state(site.job_id(handle), "FAILED")
    assert job["ExitCode"] == f"{code}:0"
    assert json.loads((attempt_of(handle).path / "batch.json").read_text())["exit_code"] == code


def test_a_setup_line_that_fails_is_what_the_job_says(site: Any) -> None:
    handle = site.submit("mill/grow", setup=("echo no such module >&2; exit 41",))
    state = site.wait(handle)
    assert (state.state, state.exit_code) == ("FAILED", 41)
    assert "no such module" in "".join(site.launcher.logs(handle))


def test_cancelling_lets_the_step_save(site: Any) -> None:
    gate = site.mill.root / "gate"
    handle = site.submit("mill/grow", "hold_at=3", f"gate={gate}")
    site.await_log(handle, "holding")
    assert read_status(RunFolder(handle.run_dir)).state == "RUNNING"
    site.launcher.cancel(handle)
    state = site.wait(handle)
    assert (state.state, state.exit_code) == ("CANCELLED", 130), site.told(handle)
    assert (handle.run_dir / "checkpoints" / "step-00000003").is_dir()
    site.cluster.await_state(site.job_id(handle), "CANCELLED")


def test_a_cancel_by_force_ends_it_at_once(site: Any) -> None:
    handle = site.submit("mill/grow", "hold_at=1", "gate=/nowhere")
    site.await_log(handle, "holding")
    site.launcher.cancel(handle, force=True)
    assert site.wait(handle).state == "CANCELLED"


def test_a_job_that_never_began_can_be_cancelled(site: Any) -> None:
    site.submit("mill/grow", "hold_at=1", "gate=/nowhere", exclusive=True)
    first = site.submit("mill/grow", "hold_at=2", "gate=/nowhere", exclusive=True)
    waiting = site.submit("mill/grow", "steps=3", exclusive=True)
    site.await_log(first, "holding")
    until(lambda: site.launcher.state(waiting).reason == "Resources")
    site.launcher.cancel(waiting)
    assert site.wait(waiting).state == "CANCELLED"


def test_a_job_is_found_again_when_its_submitter_died_at_once(site: Any) -> None:
    for steps in (1, 2):
        site.submit("mill/grow", f"hold_at={steps}", "gate=/nowhere", exclusive=True)
    handle = site.submit("mill/grow", "steps=3", exclusive=True)
    job_id = site.job_id(handle)
    (attempt_of(handle).path / "job.json").unlink()
    assert site.launcher.state(handle).state == "PENDING"
    site.launcher.cancel(handle)
    assert site.cluster.await_state(job_id, "CANCELLED")
    assert site.wait(handle).state == "CANCELLED"


def test_a_job_writes_its_own_handle_when_nobody_did(site: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr("nemotron_style.runtime.launch.slurm.launcher.write_json", lambda *_: None)
    handle = site.submit("mill/grow")
    assert site.wait(handle).state == "COMPLETED", site.told(handle)
    assert attempt_of(handle).job["executor"] == "slurm"


def test_the_file_that_asks_to_stop_works_from_any_shell(site: Any) -> None:
    handle = site.submit("mill/grow", "hold_at=3", "gate=/nowhere")
    site.await_log(handle, "holding")
    (attempt_of(handle).path / "stop").write_text("enough\n")
    state = site.wait(handle)
    assert (state.state, state.exit_code) == ("CANCELLED", 130), site.told(handle)
    site.cluster.await_state(
        site.job_id(handle), "FAILED"
    )  # so that no job that waits for it begins


def test_a_chain_of_jobs_runs_in_its_order(site: Any) -> None:
    gate = site.mill.root / "gate"
    held = (f"+inputs.input.overrides.{key}" for key in ("hold_at=1", f"gate={gate}"))
    handle = site.submit("mill/bake", *held)
    waited = site.cluster.job(site.job_id(handle))["Dependency"]
    assert "afterok" in waited
    gate.touch()
    assert site.wait(handle).state == "COMPLETED", site.told(handle)
    baked = site.mill.store.output_of(handle.run_dir.name, "sack")
    makers = [line[5:9] for line in (baked.path / "sack.txt").read_text().splitlines()]
    assert makers == ["grow", "grin", "bake"]


def test_what_needs_a_job_that_fails_never_begins(site: Any) -> None:
    handle = site.submit("mill/grind", "+inputs.input.overrides.raise_at=1")
    state = site.wait(handle)
    assert state.state == "CANCELLED", site.told(handle)
    assert "waited for" in state.reason


def test_what_sbatch_refuses_is_told_and_closed(site: Any) -> None:
    plan = site.plan("mill/grow", partition="nowhere")
    (problem,) = site.launcher.check(plan)
    assert "invalid partition specified: nowhere" in problem.got
    with pytest.raises(StepFailed, match="invalid partition specified: nowhere"):
        site.launcher.submit(site.launcher.compile(plan))
    attempt = RunFolder(plan.run_dir).last_attempt
    assert attempt is not None
    assert attempt.record["state"] == "FAILED"
    assert "invalid partition" in attempt.record["error"]
    assert site.cluster.run("squeue", "--noheader").strip() == ""
