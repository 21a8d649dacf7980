"""The supervisor by itself: what it waits for, and what it writes about every kind of end."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from nemotron_style.runtime.atomic import write_text
from nemotron_style.runtime.launch import supervisor
from nemotron_style.runtime.launch.supervisor import Supervisor, grow_pauses, main
from nemotron_style.runtime.process import is_alive
from nemotron_style.runtime.run.attempt import Attempt
from nemotron_style.runtime.run.folder import RunFolder

SIGNALS = (signal.SIGTERM, signal.SIGQUIT, signal.SIGALRM, signal.SIGHUP, signal.SIGINT)


@pytest.fixture
def attempt(tmp_path: Path) -> Attempt:
    claimed = RunFolder(tmp_path / "runs/a-1").claim_attempt(detached=True)
    assert claimed is not None
    return claimed


@pytest.fixture
def handlers() -> Iterator[None]:
    """Put back what ``listen`` changes."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    yield
    signal.alarm(0)
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def upstream(tmp_path: Path) -> RunFolder:
    folder = RunFolder(tmp_path / "runs/b-2")
    assert folder.claim_attempt(detached=True) is not None
    return folder


def end(folder: RunFolder, state: str, **facts: Any) -> None:
    assert folder.last_attempt is not None
    folder.last_attempt.close(state, **facts)


def test_a_command_that_says_nothing_is_closed_with_its_code(attempt: Attempt) -> None:
    Supervisor(attempt).execute(["bash", "-c", "echo hello; exit 3"])
    assert (attempt.record["state"], attempt.record["exit_code"]) == ("FAILED", 3)
    assert attempt.log.read_text() == "hello\n"


def test_the_child_is_written_down_and_marked(attempt: Attempt) -> None:
    script = f'cat {attempt.path}/child.json; echo "$NEMOTRON_STYLE_JOB $NEMOTRON_STYLE_ATTEMPT"'
    Supervisor(attempt).execute(["bash", "-c", f"echo $$; {script}"])
    own, *written, variables = attempt.log.read_text().splitlines()
    assert f'"pid": {own},' in "\n".join(written)
    assert variables == f"{os.path.realpath(attempt.path)} 1"
    assert not is_alive(attempt.child)


def test_what_the_worker_wrote_stands(attempt: Attempt) -> None:
    text = '{"state": "COMPLETED", "exit_code": 0}'
    Supervisor(attempt).execute(["bash", "-c", f"echo '{text}' > {attempt.path}/attempt.json"])
    assert attempt.record == {"state": "COMPLETED", "exit_code": 0}


@pytest.mark.usefixtures("handlers")
def test_an_order_from_before_it_listened_is_executed(attempt: Attempt) -> None:
    """As that of a cancel whose signal was ignored while the interpreter started."""
    attempt.record_cancel()
    late = Supervisor(attempt)
    late.listen()
    late.execute(["touch", str(attempt.path / "ran")])
    assert attempt.record["state"] == "CANCELLED"
    assert not (attempt.path / "ran").exists()


def test_a_command_that_is_not_there(attempt: Attempt) -> None:
    Supervisor(attempt).execute(["/nowhere/bash"])
    assert attempt.record["state"] == "FAILED"
    assert "could not be started" in attempt.record["error"]


@pytest.mark.parametrize("state", ["FAILED", "CANCELLED", "TIMEOUT", "LOST"])
def test_a_needed_run_that_did_not_complete_cancels(
    attempt: Attempt, upstream: RunFolder, state: str
) -> None:
    end(upstream, state, error="the stone broke")
    Supervisor(attempt, [upstream]).execute(["false"])
    assert attempt.record["state"] == "CANCELLED"
    assert attempt.record["error"] == f"needs b-2, which is {state}: the stone broke"
    assert attempt.child == {}


def test_it_waits_and_says_for_whom(
    attempt: Attempt, upstream: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []

    def pause(seconds: float) -> None:
        if reason := attempt.record["reason"]:  # "" while it waits for its own child
            said.append(reason)
        if len(said) == 3:
            write_text(upstream.path / "outputs.json", "{}")

    monkeypatch.setattr(supervisor.time, "sleep", pause)
    Supervisor(attempt, [upstream]).execute(["bash", "-c", "exit 5"])
    assert said == ["waits for b-2"] * 3
    assert attempt.record["reason"] == ""
    assert attempt.record["exit_code"] == 5


def test_a_run_that_nobody_began_is_not_waited_for(attempt: Attempt, tmp_path: Path) -> None:
    Supervisor(attempt, [RunFolder(tmp_path / "runs/c-3")]).execute(["bash", "-c", "exit 5"])
    assert attempt.record["exit_code"] == 5


@pytest.mark.parametrize("order", ["stop", "kill"])
def test_cancelled_while_it_waits(
    attempt: Attempt, upstream: RunFolder, monkeypatch: pytest.MonkeyPatch, order: str
) -> None:
    watch = Supervisor(attempt, [upstream])
    monkeypatch.setattr(supervisor.time, "sleep", lambda _: getattr(watch, order)())
    watch.execute(["false"])
    assert attempt.record["state"] == "CANCELLED"
    assert attempt.is_cancelled
    assert attempt.child == {}


def test_cancelled_before_it_began(attempt: Attempt) -> None:
    watch = Supervisor(attempt)
    watch.stop()
    watch.execute(["false"])
    assert (attempt.record["state"], attempt.child) == ("CANCELLED", {})


@pytest.mark.parametrize(("order", "code"), [("stop", 130), ("kill", 137)])
def test_cancelled_just_while_it_is_being_started(
    attempt: Attempt, monkeypatch: pytest.MonkeyPatch, order: str, code: int
) -> None:
    watch, start = Supervisor(attempt), supervisor.start_child

    def interrupted(*words: Any) -> Any:
        child = start(*words)
        getattr(watch, order)()
        return child

    monkeypatch.setattr(supervisor, "start_child", interrupted)
    watch.execute(["sleep", "1000"])
    signal.alarm(0)
    assert (attempt.record["state"], attempt.record["exit_code"]) == ("CANCELLED", code)


@pytest.mark.usefixtures("handlers")
def test_a_child_that_does_not_listen_is_killed_when_the_grace_is_over(attempt: Attempt) -> None:
    script = "trap '' TERM; kill -TERM $PPID; while :; do sleep 1000; done"
    assert main([str(attempt.path), "--grace", "1", "--", "bash", "-c", script]) == 0
    assert (attempt.record["state"], attempt.record["exit_code"]) == ("CANCELLED", 137)
    assert (attempt.path / "stop").is_file()


@pytest.mark.usefixtures("handlers")
@pytest.mark.parametrize(("name", "code"), [("HUP", 129), ("INT", 130)])
def test_a_departing_shell_does_not_end_it_nor_make_its_child_deaf(
    attempt: Attempt, name: str, code: int
) -> None:
    script = f"kill -{name} $PPID; kill -{name} $$; sleep 1000"
    main([str(attempt.path), "--", "bash", "-c", script])
    assert attempt.record["exit_code"] == code


@pytest.mark.usefixtures("handlers")
def test_a_child_that_traps_the_signal_and_exits_0_is_cancelled(attempt: Attempt) -> None:
    script = "trap 'exit 0' TERM; kill -TERM $PPID; while :; do sleep 0.01; done"
    main([str(attempt.path), "--", "bash", "-c", script])
    assert attempt.record["state"] == "CANCELLED"
    assert attempt.record["exit_code"] == 0


@pytest.mark.usefixtures("handlers")
def test_what_a_cancelled_child_leaves_behind_goes_too(attempt: Attempt, tmp_path: Path) -> None:
    script = f"(trap '' TERM; setsid sleep 1000 & echo $! > {tmp_path}/left)"
    script += "; kill -TERM $PPID; sleep 1000"
    main([str(attempt.path), "--", "bash", "-c", script])
    left = int((tmp_path / "left").read_text())
    stat = Path(f"/proc/{left}/stat")
    end = time.monotonic() + 120  # a kill takes effect when the kernel gets round to it
    while (there := stat.exists() and ") Z " not in stat.read_text()) and time.monotonic() < end:
        time.sleep(0.01)
    assert not there


def test_pauses_grow_to_a_bound() -> None:
    pauses = list(islice(grow_pauses(), 30))
    assert pauses == sorted(pauses)
    assert pauses[-1] == supervisor.MOST_SECONDS_BETWEEN_LOOKS
