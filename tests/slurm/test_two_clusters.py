"""Two real clusters on one store, with jobs of the same numbers."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from nemotron_style.runtime.launch.base import JobHandle, attempt_of
from nemotron_style.runtime.launch.slurm import client, state
from nemotron_style.runtime.planning.runner import submit_pipeline
from nemotron_style.runtime.run.folder import RunFolder
from nemotron_style.runtime.run.listing import list_runs

PROFILE = '[site]\nexecutor = "slurm"\n'


def submit_stranger(cluster: Any, number: str, folder: Path) -> str:
    """A job of the other cluster that is called otherwise and has the same number."""
    words = ["sbatch", "--parsable", f"--chdir={folder}", "--output=/dev/null"]
    while True:
        made = cluster.run(*words, "--hold", "--job-name=stranger", "--wrap=sleep 300").strip()
        if made == number:
            cluster.run("scontrol", "release", number)
            cluster.await_state(number, "RUNNING")
            return made
        assert int(made) < int(number), "the other cluster is ahead; start it anew"


def age(handle: JobHandle) -> None:
    """Nothing happened here for long, so that silence is not taken for haste."""
    attempt_of(handle).update(launcher={})
    for path in attempt_of(handle).path.iterdir():
        os.utime(path, (time.time() - 1000, time.time() - 1000))


@pytest.fixture
def elsewhere(other_cluster: Any) -> Any:
    yield other_cluster
    other_cluster.clear()


def test_a_job_of_our_number_on_another_cluster_is_neither_believed_nor_touched(
    site: Any, elsewhere: Any, cli: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.mill.write("env.toml", PROFILE)
    gate = site.mill.root / "gate"
    handle = site.submit("mill/grow", "hold_at=3", f"gate={gate}", "save_every=5")
    site.await_log(handle, "holding")
    second = site.submit("mill/grow", "steps=9", "hold_at=1", f"gate={gate}")
    site.await_log(second, "holding")
    number = submit_stranger(elsewhere, site.job_id(handle), tmp_path)
    for each in (handle, second):
        age(each)

    monkeypatch.setenv("SLURM_CONF", str(elsewhere.config))
    state = site.launcher.state(handle)
    assert (state.state, state.is_final) == ("RUNNING", False)
    assert state.reason == f"job {number} is on cluster steps, and Slurm here is other"
    assert not site.launcher.state(second).is_final, "a number that is unknown here says nothing"
    listed = subprocess.run(
        cli("runs", "list"), capture_output=True, text=True, timeout=240, check=False
    )
    assert listed.returncode == 0
    assert "LOST" not in listed.stdout
    assert "Slurm here is other" in listed.stderr

    again = site.compile("mill/grow", "hold_at=3", f"gate={gate}", "save_every=5")
    (submission,) = submit_pipeline(again, launcher=site.launcher)
    assert submission.handle == handle, "the same command follows, and submits no second job"

    site.launcher.cancel(handle)
    assert elsewhere.job(number)["JobState"] == "RUNNING"
    monkeypatch.setenv("SLURM_CONF", str(site.cluster.config))
    # Its own worker was asked by the run's folder, and saved.
    assert site.wait(handle).state == "CANCELLED", site.told(handle)
    assert (handle.run_dir / "checkpoints" / "step-00000003").is_dir()
    assert [len(run.attempts) for run in list_runs(site.mill.home)] == [1, 1]
    assert elsewhere.job(number)["JobState"] == "RUNNING"
    site.launcher.cancel(second)
    assert site.wait(second).state == "CANCELLED"


def test_a_controller_that_hangs_costs_one_wait_for_all_runs(
    site: Any, elsewhere: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_CONF", str(elsewhere.config))
    handles = [
        site.submit("mill/grow", f"steps={n}", "hold_at=1", "gate=/nowhere") for n in (1, 2, 3)
    ]
    for handle in handles:
        site.await_log(handle, "holding")
    monkeypatch.setattr(client, "SECONDS_TO_SHOW", 1)
    waits: list[int] = []

    def count(job_ids: Iterable[str]) -> client.Answer:
        waits.append(1)
        return client.ask(job_ids)

    monkeypatch.setattr(state, "ask", count)
    (controller,) = [each for each in elsewhere.daemons if each.args[0] == "slurmctld"]
    controller.send_signal(signal.SIGSTOP)
    try:
        states = site.launcher.states(handles)
    finally:
        controller.send_signal(signal.SIGCONT)
    assert {(each.state, each.stale) for each in states} == {("RUNNING", True)}
    assert len(waits) == 1
    assert RunFolder(handles[0].run_dir).last_attempt.recorded_end is None
