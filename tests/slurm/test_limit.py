"""Time limits: workers are told in time, and Slurm starts the job again from its checkpoint."""

from __future__ import annotations

from typing import Any

import pytest

from nemotron_style.runtime.launch.base import attempt_of
from nemotron_style.runtime.launch.status import read_status, refresh_status
from nemotron_style.runtime.run.folder import RunFolder

FAILS_WHEN_TOLD = """
import time


def run(config, ctx):
    ctx.say("grinding")
    while not ctx.stopping:
        time.sleep(0.01)
    raise RuntimeError("the mill stone broke")
"""


def begin(site: Any, *, requeues: int) -> Any:
    """A job that has done three of five steps, and then waits for nothing."""
    handle = site.submit(
        "mill/grow",
        *("steps=5", "hold_at=3", "gate=/nowhere", "save_every=5"),
        max_requeues=requeues,
        time="00:10:00",
    )
    site.await_log(handle, "holding")
    return handle


def reach_the_limit(site: Any, handle: Any) -> None:
    """What Slurm does some time before the limit; it counts in whole minutes."""
    site.cluster.run("scancel", "--signal=USR1", "--batch", site.job_id(handle))


def go_on(site: Any, handle: Any) -> None:
    site.cluster.await_state(site.job_id(handle), "PENDING")
    site.cluster.hasten(site.job_id(handle))


def test_a_requeued_job_goes_on_from_its_checkpoint(site: Any) -> None:
    handle = begin(site, requeues=1)
    follower = site.launcher.logs(handle)
    reach_the_limit(site, handle)
    site.cluster.await_state(site.job_id(handle), "PENDING")
    state = read_status(RunFolder(handle.run_dir))
    assert state.state == "REQUEUED", site.told(handle)
    assert attempt_of(handle).record["error"] == "reached its time limit"
    assert site.launcher.state(handle).state == "REQUEUED"
    go_on(site, handle)
    text = "".join(follower)
    assert site.wait(handle).state == "COMPLETED", site.told(handle)
    first, separator, second = text.partition("--- attempt 2: Slurm started the job again ---\n")
    assert separator
    assert "holding" in first
    assert "continuing from the checkpoint of step 3" in second
    baked = site.mill.store.output_of(handle.run_dir.name, "sack")
    assert (baked.path / "sack.txt").read_text().endswith(" 15\n")  # as without a break
    attempts = RunFolder(handle.run_dir).attempts
    assert [attempt.record["state"] for attempt in attempts] == ["REQUEUED", "COMPLETED"]
    assert [attempt.job["id"] for attempt in attempts] == [site.job_id(handle)] * 2


def test_when_no_restart_is_left_the_end_is_a_timeout(site: Any) -> None:
    handle = begin(site, requeues=0)
    reach_the_limit(site, handle)
    state = site.wait(handle)
    assert (state.state, state.exit_code) == ("TIMEOUT", 124), site.told(handle)
    site.cluster.await_state(site.job_id(handle), "FAILED")
    assert refresh_status(RunFolder(handle.run_dir)).state == "TIMEOUT"
    again = site.submit("mill/grow", "steps=5", "hold_at=3", "gate=/nowhere", "save_every=5")
    assert again.attempt == 2
    assert site.wait(again).state == "COMPLETED", site.told(again)


def test_a_requeued_job_can_be_cancelled_while_it_waits(site: Any) -> None:
    handle = begin(site, requeues=3)
    reach_the_limit(site, handle)
    site.cluster.await_state(site.job_id(handle), "PENDING")
    site.launcher.cancel(handle)
    assert site.wait(handle).state == "CANCELLED", site.told(handle)
    assert refresh_status(RunFolder(handle.run_dir)).state == "CANCELLED"


def test_a_step_that_fails_near_the_limit_is_not_started_again(site: Any) -> None:
    site.mill.write("code/milling/recipe.py", FAILS_WHEN_TOLD)
    handle = site.submit("mill/grow", max_requeues=2, time="00:10:00")
    site.await_log(handle, "grinding")
    reach_the_limit(site, handle)
    state = site.wait(handle)
    assert (state.state, state.exit_code) == ("FAILED", 1), site.told(handle)
    assert state.reason == "RuntimeError: the mill stone broke"


def test_a_step_that_does_not_stop_in_time_begins_again_all_the_same(site: Any) -> None:
    pause, gate = 1000.0, site.mill.root / "gate"
    handle = site.submit(
        "mill/grow",
        f"pause={pause}",
        max_requeues=1,
        grace_seconds=2,
        time="00:10:00",
        setup=(f"[ ! -e {gate} ] || exit 43", f"touch {gate}"),
    )
    site.await_state(handle, "RUNNING")
    reach_the_limit(site, handle)
    go_on(site, handle)
    state = site.wait(handle)
    assert (state.state, state.exit_code) == ("FAILED", 43), site.told(handle)
    first = attempt_of(handle).record
    assert (first["state"], first["error"]) == ("REQUEUED", "reached its time limit")


def test_a_job_that_slurm_takes_back_goes_on_later(site: Any) -> None:
    handle = begin(site, requeues=1)
    site.cluster.run("scontrol", "requeue", site.job_id(handle))  # as pre-emption does
    site.cluster.await_state(site.job_id(handle), "PENDING")
    assert read_status(RunFolder(handle.run_dir)).state == "REQUEUED", site.told(handle)
    assert (handle.run_dir / "checkpoints" / "step-00000003").is_dir()
    go_on(site, handle)
    assert site.wait(handle).state == "COMPLETED", site.told(handle)
    first = attempt_of(handle).record
    assert (first["state"], first["error"]) == ("REQUEUED", "Slurm took its nodes")


def test_a_job_whose_node_died_goes_on_and_its_first_attempt_was_not_the_end(site: Any) -> None:
    handle = begin(site, requeues=1)
    site.cluster.run("scontrol", "requeue", site.job_id(handle))
    site.cluster.await_state(site.job_id(handle), "PENDING")
    left = attempt_of(handle).path / "batch.json"
    left.write_text('{"state": "RUNNING", "exit_code": null, "reason": ""}')  # as a dead node would
    go_on(site, handle)
    assert site.wait(handle).state == "COMPLETED", site.told(handle)
    first = attempt_of(handle).record
    assert (first["state"], first["error"]) == ("REQUEUED", "Slurm started it again")


@pytest.mark.slow
def test_slurm_itself_tells_of_the_limit(site: Any) -> None:
    gate = site.mill.root / "gate"
    handle = site.submit(
        "mill/grow",
        *("steps=5", "hold_at=3", f"gate={gate}", "save_every=5"),
        max_requeues=1,
        grace_seconds=20,  # Slurm looks every 30 seconds, so it tells 10 to 40 after the start
        time="00:01:00",
    )
    site.cluster.await_state(site.job_id(handle), "RUNNING")
    site.cluster.await_state(site.job_id(handle), "PENDING")
    assert site.launcher.state(handle).state == "REQUEUED", site.told(handle)
    gate.touch()
    go_on(site, handle)
    assert site.wait(handle).state == "COMPLETED", site.told(handle)
