"""Two clusters on one store: a number of the one is somebody else's job on the other."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from typing import Any

import pytest

from nemotron_style.runtime.errors import StepFailed
from nemotron_style.runtime.launch import local
from nemotron_style.runtime.launch.base import JobHandle
from nemotron_style.runtime.launch.local import abandon_attempt
from nemotron_style.runtime.launch.slurm import client
from nemotron_style.runtime.launch.slurm.client import SlurmError, ask
from nemotron_style.runtime.launch.slurm.handle import read_handle
from nemotron_style.runtime.launch.slurm.launcher import SlurmLauncher
from nemotron_style.runtime.launch.slurm.state import describe_unmet, find_current
from nemotron_style.runtime.run.attempt import Attempt
from nemotron_style.runtime.run.folder import RunFolder
from nemotron_style.runtime.run.state import JobState

UNKNOWN = "echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1"
HERE = {"cluster": "alps", "controller": "lab1(10.0.0.1):6817"}


def say_cluster(cluster: str = "alps", host: str = "lab1(10.0.0.1)", port: int = 6817) -> str:
    return f"ClusterName = {cluster}\nSlurmctldHost[0] = {host}\nSlurmctldPort = {port}"


ELSEWHERE = {
    "a cluster of another name": say_cluster("jura"),
    "a cluster of the same name with another controller": say_cluster(host="lab2(10.0.0.2)"),
    "one at another port": say_cluster(port=6819),
    "one that does not say which it is": "",
}


@pytest.fixture
def start(tmp_path: Any) -> Callable[..., tuple[JobHandle, Attempt]]:
    """An old attempt that was submitted as job 7 of the cluster ``alps``."""

    def make(run: str = "r-1", **handle: str) -> tuple[JobHandle, Attempt]:
        attempt = RunFolder(tmp_path / "runs" / run).claim_attempt(executor="slurm", detached=True)
        assert attempt is not None
        attempt.update(launcher={})
        facts = {"executor": "slurm", "id": "7", "name": run, "folder": "/x", **HERE, **handle}
        (attempt.path / "job.json").write_text(json.dumps(facts))
        for path in attempt.path.iterdir():
            os.utime(path, (time.time() - 1000, time.time() - 1000))
        return JobHandle("slurm", attempt.run_dir, attempt.number), attempt

    return make


def know_nothing(commands: Any, where: str) -> None:
    commands.set("scontrol", f"printf '%s\\n' '{where}'; {UNKNOWN}")


@pytest.mark.parametrize("case", ELSEWHERE)
def test_an_unknown_number_elsewhere_is_not_lost(start: Any, commands: Any, case: str) -> None:
    handle, _ = start()
    know_nothing(commands, ELSEWHERE[case])
    state = SlurmLauncher().state(handle)
    assert (state.state, state.is_final, state.stale) == ("PENDING", False, True)
    assert state.reason.startswith("job 7 is ")


def test_an_unknown_number_of_its_own_cluster_is_lost(start: Any, commands: Any) -> None:
    handle, _ = start()
    know_nothing(commands, say_cluster())
    assert SlurmLauncher().state(handle) == JobState("LOST", None, "Slurm knows no such job")


@pytest.mark.parametrize(
    ("where", "name", "recorded", "state"),
    [
        (say_cluster("jura"), "r-1", {}, "PENDING"),  # even our name and folder, elsewhere
        (say_cluster(host="lab2"), "stranger", {}, "PENDING"),
        (say_cluster(), "stranger", {}, "LOST"),  # our cluster has given its number again
        (say_cluster(), "stranger", {"controller": ""}, "PENDING"),  # as the batch script writes it
        ("", "stranger", {"cluster": "", "controller": ""}, "PENDING"),  # of an older store
        (say_cluster(), "r-1", {"folder": "/y"}, "LOST"),  # the same run in somebody else's store
        (say_cluster(), "r-1", {}, "COMPLETED"),
        (say_cluster(host="lab2"), "r-1", {}, "COMPLETED"),  # its controller has moved
        ("", "r-1", {"cluster": "", "controller": "", "folder": "", "name": ""}, "COMPLETED"),
    ],
)
def test_a_job_is_ours_only_where_everything_matches(
    start: Any, commands: Any, where: str, name: str, recorded: dict[str, str], state: str
) -> None:
    handle, _ = start(**recorded)
    commands.show(state="COMPLETED", name=name, where=where)
    seen = SlurmLauncher().state(handle).state
    # Completed without outputs is what our own job says here.
    assert seen == state


@pytest.mark.parametrize("force", [False, True])
def test_cancel_never_reaches_a_job_of_another_cluster(
    start: Any, commands: Any, force: bool
) -> None:
    handle, attempt = start()
    commands.show(state="RUNNING", where=say_cluster("jura"))
    with pytest.raises(StepFailed, match="job 7 is on cluster alps, and Slurm here is jura"):
        SlurmLauncher().cancel(handle, force=force)
    assert not [line for line in commands.said if "scancel" in line]
    assert attempt.is_cancelled
    name = "kill" if force else "stop"
    assert (attempt.path / name).is_file(), "should it have a worker, that sees the folder"


def test_a_worker_under_way_elsewhere_is_asked_by_its_folder(start: Any, commands: Any) -> None:
    handle, attempt = start()
    attempt.update(state="RUNNING")
    know_nothing(commands, say_cluster("jura"))
    SlurmLauncher().cancel(handle)
    assert (attempt.path / "stop").is_file()
    SlurmLauncher().cancel(handle, force=True)
    assert attempt.is_kill_requested
    assert not [line for line in commands.said if "scancel" in line]


def test_a_run_of_a_cluster_that_is_gone_can_be_declared_lost(
    start: Any, commands: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "SECONDS_TO_SEE_A_SIGN", 0.05)
    handle, attempt = start()
    know_nothing(commands, say_cluster("jura"))
    abandon_attempt(attempt, unreachable=SlurmLauncher().state(handle).stale)
    assert SlurmLauncher().state(handle).state == "LOST"
    assert attempt.is_abandoned, "a worker that is alive all the same ends itself"


def test_cancel_reaches_our_own(start: Any, commands: Any) -> None:
    handle, _ = start()
    commands.show(state="RUNNING", where=say_cluster())
    SlurmLauncher().cancel(handle)
    assert "scancel 7" in commands.said


def test_no_job_waits_for_a_number_of_another_cluster(start: Any, commands: Any) -> None:
    handle, _ = start()
    commands.show(state="RUNNING", where=say_cluster("jura"))
    waited, failed = describe_unmet([handle])
    assert waited == []
    assert failed == ["r-1 cannot be waited for: job 7 is on cluster alps, and Slurm here is jura"]


def test_a_submission_that_was_cut_off_is_not_lost_elsewhere(start: Any, commands: Any) -> None:
    """Its number was never written; another cluster, which has no such job, must not decide."""
    handle, _ = start(id="")
    commands.set("squeue", "")
    know_nothing(commands, say_cluster("jura"))
    state = SlurmLauncher().state(handle)
    assert (state.state, state.reason) == (
        "PENDING",
        "its job is on cluster alps, and Slurm here is jura",
    )
    know_nothing(commands, say_cluster())
    assert SlurmLauncher().state(handle).reason == "never submitted"


def test_one_number_on_two_clusters_is_two_jobs(start: Any, tmp_path: Any) -> None:
    handle, first = start()
    second = first.path.with_name("2")
    second.mkdir()
    (second / "job.json").write_text(json.dumps({"id": "7", "cluster": "jura"}))
    assert find_current(handle).number == 1
    (second / "job.json").write_text(json.dumps({"id": "7", "cluster": "alps"}))
    assert find_current(handle).number == 2


@pytest.mark.parametrize("number", ["--user=root", "7\nshutdown", "7,8", "-1", "", "\u0667"])
def test_what_is_no_number_becomes_no_word_of_a_command(start: Any, number: str) -> None:
    _, attempt = start(id=number)
    assert read_handle(attempt).id == ""


def test_many_jobs_are_one_question(start: Any, commands: Any) -> None:
    handles = [start(f"r-{at}", id=str(at))[0] for at in range(3)]
    lines = [
        f"JobId={at} JobName=r-{at} JobState=RUNNING Reason=None WorkDir=/x" for at in range(3)
    ]
    shown = "' '".join([say_cluster(), *lines])
    commands.set("scontrol", f"cat > '{commands.folder}/asked'; printf '%s\\n' '{shown}'")
    states = SlurmLauncher().states(handles)
    assert [state.state for state in states] == ["RUNNING"] * 3
    assert commands.said == ["scontrol --oneliner"]
    asked = (commands.folder / "asked").read_text().splitlines()
    assert asked == ["show config", "show job 0", "show job 1", "show job 2"]


def test_a_controller_that_is_down_is_waited_for_once(
    start: Any, commands: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    handles = [start(f"r-{at}", id=str(at))[0] for at in range(20)]
    commands.set("scontrol", "exec sleep 30")
    monkeypatch.setattr(client, "SECONDS_TO_SHOW", 0.2)
    states = SlurmLauncher().states(handles)
    assert len(commands.said) < 2  # it may have been ended before it said so
    assert {state.state for state in states} == {"PENDING"}
    assert {state.reason for state in states} == {
        "no news from Slurm: scontrol gave no answer in 0.2 seconds"
    }
    assert all(state.stale for state in states)
    assert commands.said == ["scontrol --oneliner"]


def test_an_answer_in_part_calls_no_job_gone(commands: Any) -> None:
    """The controller went down between two answers."""
    dead = "echo 'Unable to contact slurm controller' >&2; exit 1"
    commands.set("scontrol", f"printf '%s\\n' '{say_cluster()}'; {dead}")
    with pytest.raises(SlurmError, match="Unable to contact"):
        ask(["7"])


@pytest.mark.parametrize("folder", ["/a b/runs/r-1", "/a StdErr=x/runs/r-1", "/plain/runs/r-1"])
def test_a_work_directory_is_read_whole_or_does_not_match(commands: Any, folder: str) -> None:
    line = f"JobId=7 JobName=r-1 JobState=RUNNING Reason=None Command=/c WorkDir={folder} "
    commands.set("scontrol", f"echo '{line}StdErr=/e StdIn=/dev/null StdOut=/o Power= '")
    shown = ask(["7"]).jobs["7"].folder
    assert shown == folder or "StdErr" in folder
