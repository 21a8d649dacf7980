"""Attempts by their files: whose they are, what may be concluded, and who begins the next one."""

from __future__ import annotations

import json
import multiprocessing
import os
import subprocess
import sys
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from hosts import pretend_to_be
from nemotron_style.runtime.errors import UsageError
from nemotron_style.runtime.launch import local
from nemotron_style.runtime.launch.base import handle_of
from nemotron_style.runtime.launch.lepton import state as lepton_state
from nemotron_style.runtime.launch.local import LocalLauncher, abandon_attempt, warn_of_silence
from nemotron_style.runtime.launch.slurm import state as slurm_state
from nemotron_style.runtime.launch.status import read_status, refresh_status
from nemotron_style.runtime.process import identify_process
from nemotron_style.runtime.run.attempt import Attempt
from nemotron_style.runtime.run.folder import RunFolder
from nemotron_style.runtime.run.lease import keep_lease
from waiting import until

HERE = os.uname().nodename


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path / "runs/a-1")


def begin(folder: RunFolder, **facts: Any) -> Attempt:
    attempt = folder.claim_attempt(**facts)
    assert attempt is not None
    return attempt


def end_process() -> dict[str, Any]:
    """The identity of a process that has ended."""
    child = subprocess.Popen(["true"])
    identity = identify_process(child.pid)
    child.wait()
    return identity


def lose(folder: RunFolder) -> Attempt:
    """An attempt whose launcher died before there was a worker."""
    attempt = begin(folder)
    attempt.update(launcher=end_process())
    return attempt


def test_no_attempt_begins_beside_one_of_another_machine(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempt = begin(folder)
    assert attempt.take_ownership()
    attempt.update(state="RUNNING")
    pretend_to_be("beta", monkeypatch)
    status = refresh_status(folder)
    assert (status.state, status.is_final) == ("RUNNING", False)
    assert status.reason.startswith(f"under way on {HERE}, last sign ")
    assert folder.claim_attempt() is None
    assert attempt.recorded_end is None


@pytest.mark.parametrize("name", ["attempt.json", "owner.json", "child.json", "batch.json"])
def test_a_file_that_cannot_be_read_is_not_taken_for_missing(folder: RunFolder, name: str) -> None:
    """A directory in its place stands for a colleague's file: root is refused by nothing else."""
    attempt = lose(folder)
    (attempt.path / name).unlink(missing_ok=True)
    (attempt.path / name).mkdir()
    with pytest.raises(OSError, match=name):
        refresh_status(folder)
    with pytest.raises(OSError, match=name):
        folder.claim_attempt()
    assert len(folder.attempts) == 1


def test_outputs_that_cannot_be_read_do_not_make_a_run_incomplete(folder: RunFolder) -> None:
    lose(folder)
    (folder.path / "outputs.json").mkdir()
    with pytest.raises(OSError, match=r"outputs\.json"):
        folder.claim_attempt()


def test_what_is_found_out_about_one_attempt_is_not_recorded_of_the_next(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = lose(folder)
    ask = LocalLauncher.state

    def slowly(self: LocalLauncher, handle: Any) -> Any:
        state = ask(self, handle)
        begin(folder)  # as another command does
        return state

    monkeypatch.setattr(LocalLauncher, "state", slowly)
    assert refresh_status(folder).state == "LOST"
    assert [one.recorded_state for one in folder.attempts] == ["LOST", "PENDING"]
    assert first.recorded_end is not None


def test_a_number_is_claimed_after_the_attempt_that_was_looked_at(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker without a launcher asks for no number, and must not jump over a living attempt."""
    lose(folder)
    abandon = Attempt.abandon

    def slowly(self: Attempt) -> bool:
        done = abandon(self)
        monkeypatch.setattr(Attempt, "abandon", abandon)
        begin(folder)
        return done

    monkeypatch.setattr(Attempt, "abandon", slowly)
    assert folder.claim_attempt() is None
    assert [one.state for one in folder.attempts] == ["LOST", "PENDING"]


def test_two_that_abandon_the_same_attempt_both_go_on(folder: RunFolder) -> None:
    attempt = lose(folder)
    assert attempt.abandon()
    assert attempt.abandon()
    assert not attempt.take_ownership()


def _claim(path: Path, start: Any, answers: Any) -> None:
    start.wait()
    attempt = RunFolder(path).claim_attempt(2)
    answers.put(attempt.number if attempt else 0)
    start.wait()  # it lives until all have tried


@pytest.mark.parametrize("count", [8])
def test_of_many_one_begins_the_next_attempt(folder: RunFolder, count: int) -> None:
    lose(folder)
    fork = multiprocessing.get_context("fork")
    start, answers = fork.Barrier(count + 1), fork.Queue()
    claimers = [
        fork.Process(target=_claim, args=(folder.path, start, answers)) for _ in range(count)
    ]
    for claimer in claimers:
        claimer.start()
    start.wait(120)
    claimed = sorted(answers.get(timeout=120) for _ in claimers)
    start.wait(120)
    for claimer in claimers:
        claimer.join(120)
    assert claimed == [0] * (count - 1) + [2]
    assert folder.attempts[0].recorded_state == "LOST"


def test_a_sign_is_given_at_once_and_again(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nemotron_style.runtime.run.lease.SECONDS_BETWEEN_SIGNS", 0.01)
    attempt = begin(folder)
    sign = attempt.path / "sign"
    with keep_lease(attempt):
        until(sign.exists)
        first = sign.stat().st_mtime_ns
        until(lambda: sign.stat().st_mtime_ns > first)
    last = sign.stat().st_mtime
    assert attempt.last_sign == pytest.approx(last)


def test_a_disk_that_takes_no_sign_is_no_reason_to_fail(folder: RunFolder) -> None:
    attempt = begin(folder)
    (attempt.path / "sign").symlink_to(attempt.path / "nowhere" / "sign")
    with keep_lease(attempt):
        attempt.give_sign()


WORKER = """
import sys, time
from pathlib import Path
from nemotron_style.runtime.run.attempt import Attempt
from nemotron_style.runtime.run import lease
lease.SECONDS_BETWEEN_SIGNS = 0.01
attempt = Attempt(Path(sys.argv[1]))
assert attempt.take_ownership()
with lease.keep_lease(attempt):
    print("ready", flush=True)
    while True:
        time.sleep(1)
"""


@pytest.mark.parametrize("order", ["kill", "abandoned"])
def test_orders_from_elsewhere_end_a_worker(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch, order: str
) -> None:
    attempt = begin(folder)
    worker = subprocess.Popen(
        [sys.executable, "-c", WORKER, str(attempt.path)], stdout=subprocess.PIPE
    )
    assert worker.stdout is not None
    assert worker.stdout.readline() == b"ready\n"
    with monkeypatch.context() as patch:
        pretend_to_be("beta", patch)
        if order == "kill":
            LocalLauncher().cancel(handle_of(attempt), force=True)
        else:
            attempt.declare_lost("the machine is gone")
    assert worker.wait(120) == -9
    if order == "kill":
        assert (attempt.record["state"], attempt.record["exit_code"]) == ("CANCELLED", 137)
    else:
        assert (attempt.record["state"], attempt.record["error"]) == ("LOST", "the machine is gone")
    assert folder.claim_attempt() is not None


def test_only_silence_on_another_machine_can_be_declared_lost(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "SECONDS_TO_SEE_A_SIGN", 0.05)
    attempt = begin(folder)
    with pytest.raises(UsageError, match=r"not out of sight"):
        abandon_attempt(attempt)
    pretend_to_be("beta", monkeypatch)
    pause = local.time.sleep

    def sign(seconds: float) -> None:
        attempt.give_sign()
        pause(seconds)

    with monkeypatch.context() as patch:
        patch.setattr(local.time, "sleep", sign)
        with pytest.raises(UsageError, match=r"is alive: it gave a sign"):
            abandon_attempt(attempt)
    assert read_status(folder).state == "PENDING"
    abandon_attempt(attempt)
    assert "declared lost by its user" in read_status(folder).reason
    assert not attempt.take_ownership()


def test_who_waits_for_a_silent_machine_is_told_once(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "SECONDS_BETWEEN_SIGNS", 0.0)
    monkeypatch.setattr(local, "SECONDS_OF_SILENCE", 0.0)
    attempt = begin(folder)
    lines = warn_of_silence(attempt)
    assert "".join(islice(lines, 20)) == ""  # it is in sight
    pretend_to_be("beta", monkeypatch)
    note = "".join(islice(lines, 20))
    assert note.count("note: no sign from ") == 1
    assert "runs cancel --abandon a-1" in note
    os.utime(attempt.path / "attempt.json", (1e10, 1e10))
    assert "".join(islice(lines, 20)).count("note: ") == 1


def test_another_container_of_this_machine_is_called_so(folder: RunFolder) -> None:
    attempt = begin(folder)
    attempt.update(launcher=identify_process(os.getpid()) | {"namespace": "pid:[7]"})
    reason = read_status(folder).reason
    assert reason.startswith(f"under way on another container of {HERE}, last sign ")
    assert folder.claim_attempt() is None


def test_an_attempt_of_an_earlier_version_on_another_machine_is_under_way(
    folder: RunFolder,
) -> None:
    attempt = begin(folder)
    old = {"pid": 1, "ticks": 1, "boot": "another"}
    record = json.loads((attempt.path / "attempt.json").read_text()) | {"launcher": old}
    (attempt.path / "attempt.json").write_text(json.dumps(record))
    status = read_status(folder)
    assert status.state == "PENDING"
    assert status.reason.startswith("under way on another machine, last sign ")


@pytest.mark.parametrize("executor", ["slurm", "lepton"])
def test_a_job_that_another_machine_is_submitting_is_not_lost(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch, executor: str
) -> None:
    """However long that takes; without a number there is no cluster to ask."""
    monkeypatch.setattr(local, "SECONDS_TO_SEE_A_SIGN", 0.02)
    attempt = begin(folder, executor=executor)
    attempt.update(started=0.0)
    for path in attempt.path.iterdir():
        os.utime(path, (0, 0))

    def is_pending() -> bool:
        if executor == "slurm":
            return slurm_state.is_young(attempt)
        return lepton_state.explain_absence(attempt).state == "PENDING"

    assert is_pending()
    with monkeypatch.context() as patch:
        pretend_to_be("beta", patch)
        assert is_pending()
        assert attempt.remote_host == HERE
        (attempt.path / "job.json").write_text('{"id": "7"}')
        assert attempt.remote_host == ""  # its cluster knows
        (attempt.path / "job.json").unlink()
        abandon_attempt(attempt)
    assert attempt.recorded_state == "LOST"
    attempt.update(launcher=end_process(), started=0.0)
    for path in attempt.path.iterdir():
        os.utime(path, (0, 0))
    assert not is_pending()


def test_a_record_that_is_nested_without_an_end_counts_as_none(folder: RunFolder) -> None:
    attempt = begin(folder)
    (attempt.path / "attempt.json").write_text("[" * 200_000)
    assert attempt.record == {}
    assert attempt.recorded_end is None
    assert read_status(folder).state
