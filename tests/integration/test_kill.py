"""Whatever is killed, and whenever: the next same command finishes, and nothing is half made."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from nemotron_style.runtime.cli import main
from nemotron_style.runtime.process import is_alive
from nemotron_style.runtime.run.attempt import Attempt
from nemotron_style.runtime.run.folder import RunFolder
from nemotron_style.runtime.run.listing import list_runs
from nemotron_style.runtime.step.metrics import read_metrics
from waiting import until

Capture = pytest.CaptureFixture[str]
SECONDS_TO_WAIT = 180.0


@pytest.fixture
def start(mill: Any, cli: Any) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start ``steps run`` in a process of its own; everything it left is killed afterwards."""
    started: list[subprocess.Popen[str]] = []

    def begin(*words: str) -> subprocess.Popen[str]:
        output = (mill.root / f"cli-{len(started)}.txt").open("w")
        process = subprocess.Popen(
            cli("steps", "run", *words), stdout=output, stderr=subprocess.STDOUT, text=True
        )
        started.append(process)
        return process

    yield begin
    for process in started:
        process.kill()
        process.wait()
    for attempt in live_attempts(mill.home):
        with contextlib.suppress(ProcessLookupError):
            os.kill((attempt.owner or {})["leader"], signal.SIGKILL)


def live_attempts(home: Path) -> list[Attempt]:
    attempts = [run.last_attempt for run in list_runs(home)]
    return [one for one in attempts if one and one.owner and is_alive(one.owner)]


def holding(mill: Any) -> Attempt:
    """The attempt that waits at its gate."""

    def found() -> Attempt | None:
        live = live_attempts(mill.home)
        return next((one for one in live if "holding" in one.log.read_text()), None)

    attempt = until(found)
    assert isinstance(attempt, Attempt)
    return attempt


def only_run(mill: Any) -> RunFolder:
    (run,) = list_runs(mill.home)
    return run


def finish(mill: Any, words: list[str], capsys: Capture) -> dict[str, Any]:
    (mill.root / "gate").write_text("")
    capsys.readouterr()
    assert main(["steps", "run", *words, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert isinstance(document, dict)
    return document


def held(mill: Any, at: int = 3) -> list[str]:
    return ["mill/grow", f"hold_at={at}", f"gate={mill.root}/gate", "save_every=1"]


def check_whole(mill: Any) -> None:
    """Every listed artifact verifies, and there is one of each name.

    Of whichever version: one that was claimed by a commit that was killed leaves a gap.
    """
    artifacts = list(mill.store.artifacts())
    names = sorted(one.ref.partition(":")[0] for one in artifacts)
    assert names == ["mill-grow-default", "mill-grow-default.chaff"]
    assert [problem for one in artifacts for problem in mill.store.verify(one, deep=True)] == []


def test_a_killed_command_line_leaves_the_run_and_the_next_one_attaches(
    mill: Any, start: Any, capsys: Capture
) -> None:
    command = start(*held(mill))
    attempt = holding(mill)
    command.kill()
    command.wait()
    assert attempt.state == "RUNNING"
    second = start(*held(mill))
    until(lambda: "attach: attempt 1 is under way" in (mill.root / "cli-1.txt").read_text())
    (mill.root / "gate").write_text("")
    assert second.wait(SECONDS_TO_WAIT) == 0
    shown = (mill.root / "cli-1.txt").read_text()
    assert "holding" in shown  # the log is shown from its beginning
    assert "mill-grow-default:v1" in shown
    assert len(only_run(mill).attempts) == 1
    check_whole(mill)


def test_a_killed_worker_resumes_from_its_checkpoint(
    mill: Any, start: Any, capsys: Capture
) -> None:
    command = start(*held(mill))
    attempt = holding(mill)
    os.kill((attempt.owner or {})["pid"], signal.SIGKILL)
    assert command.wait(SECONDS_TO_WAIT) == 1
    assert "ended by SIGKILL" in (mill.root / "cli-0.txt").read_text()
    document = finish(mill, held(mill), capsys)
    (run,) = document["runs"]
    assert run["decision"] == "resume"
    assert "attempt 1 failed; continues from the checkpoint of step 2" in run["reason"]
    assert run["figures"] == {"total": 10}
    folder = only_run(mill)
    assert [line["step"] for line in read_metrics(folder.path / "metrics.jsonl")] == [1, 2, 3, 4]
    producer = mill.store.resolve("mill-grow-default").record.producer
    assert [one["state"] for one in producer.attempts] == ["FAILED", "COMPLETED"]
    check_whole(mill)


def test_everything_killed_at_once_resumes(mill: Any, start: Any, capsys: Capture) -> None:
    command = start(*held(mill))
    attempt = holding(mill)
    command.kill()
    os.kill((attempt.owner or {})["pid"], signal.SIGKILL)
    command.wait()
    until(lambda: attempt.state == "LOST")
    document = finish(mill, held(mill), capsys)
    assert document["runs"][0]["decision"] == "resume"
    check_whole(mill)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_saves_and_the_same_command_resumes(
    mill: Any, start: Any, capsys: Capture, number: int
) -> None:
    command = start(*held(mill))
    holding(mill)
    command.send_signal(number)
    assert command.wait(SECONDS_TO_WAIT) == 130
    shown = (mill.root / "cli-0.txt").read_text()
    assert "stopped after step 3; the same command resumes it" in shown
    assert only_run(mill).state == "CANCELLED"
    document = finish(mill, held(mill), capsys)
    assert "was stopped; continues from the checkpoint of step 3" in document["runs"][0]["reason"]
    check_whole(mill)


def test_a_second_ctrl_c_kills_a_step_that_does_not_listen(
    mill: Any, start: Any, capsys: Capture
) -> None:
    recipe = mill.root / "code/milling/recipe.py"
    recipe.write_text(recipe.read_text().replace(" and not ctx.stopping:", ":"))
    command = start(*held(mill))
    holding(mill)
    command.send_signal(signal.SIGINT)
    until(lambda: "once more kills it" in (mill.root / "cli-0.txt").read_text())
    command.send_signal(signal.SIGINT)
    assert command.wait(SECONDS_TO_WAIT) != 0
    assert live_attempts(mill.home) == []
    finish(mill, held(mill), capsys)
    check_whole(mill)


def test_a_launcher_killed_before_it_started_anything_is_no_obstacle(
    mill: Any, capsys: Capture
) -> None:
    plan = mill.compile(*held(mill)).target.plan
    folder = RunFolder(plan.run_dir)
    pid = os.fork()
    if pid == 0:
        folder.claim_attempt()
        os._exit(0)
    os.waitpid(pid, 0)
    assert [attempt.state for attempt in folder.attempts] == ["LOST"]
    finish(mill, held(mill), capsys)
    assert [attempt.state for attempt in folder.attempts] == ["LOST", "COMPLETED"]
    check_whole(mill)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(6))
def test_killed_at_any_moment(mill: Any, start: Any, capsys: Capture, seed: int) -> None:
    """Kill the command line, the worker or both at a random moment, three times over."""
    chance = random.Random(seed)
    words = ["mill/grow", "steps=60", "save_every=3", "pause=0.01"]
    for _ in range(3):
        command = start(*words)
        with contextlib.suppress(subprocess.TimeoutExpired):
            command.wait(chance.uniform(0.2, 0.8))
        victim = chance.choice(["command", "worker", "both"])
        if victim != "worker":
            command.kill()
        for attempt in live_attempts(mill.home) if victim != "command" else []:
            with contextlib.suppress(ProcessLookupError):
                os.kill((attempt.owner or {})["pid"], signal.SIGKILL)
        command.wait(SECONDS_TO_WAIT)
    document = finish(mill, words, capsys)
    assert document["runs"][0]["figures"] == {"total": 1830}
    steps = [line["step"] for line in read_metrics(only_run(mill).path / "metrics.jsonl")]
    assert steps == list(range(1, 61))
    check_whole(mill)


def test_two_command_lines_make_one_run(mill: Any, start: Any, capsys: Capture) -> None:
    both = [start(*held(mill)) for _ in range(2)]
    holding(mill)
    (mill.root / "gate").write_text("")
    assert [command.wait(SECONDS_TO_WAIT) for command in both] == [0, 0]
    assert len(only_run(mill).attempts) == 1
    check_whole(mill)
