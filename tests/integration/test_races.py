"""Many equal commands at once: one worker at any time, no attempt too many, every command exits 0.

One round of six commands by default; ``NEMOTRON_STYLE_ROUNDS=50`` makes it 50 of twelve.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from nemotron_style.runtime.cli import main
from nemotron_style.runtime.launch.session import kill_job
from nemotron_style.runtime.process import find_marked
from nemotron_style.runtime.run.attempt import Attempt
from nemotron_style.runtime.run.listing import list_runs
from nemotron_style.runtime.step.metrics import read_metrics
from waiting import until

pytestmark = pytest.mark.slow

ROUNDS = range(int(os.environ.get("NEMOTRON_STYLE_ROUNDS", "1")))
COMMANDS = 12 if "NEMOTRON_STYLE_ROUNDS" in os.environ else 6

# Each worker of the step takes a name that only one can have, and says so when it cannot.
WATCHED = """
import os
from pathlib import Path

from milling.recipe import run as mill


def run(config, ctx):
    folder = Path(os.environ["MILL_WATCH"])
    name = folder / ctx.run_id
    try:
        os.close(os.open(name, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        (folder / f"second-{os.getpid()}").touch()
    mill(config, ctx)
    name.unlink()
"""


@pytest.fixture
def watched(mill: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    mill.write("code/milling/watched.py", WATCHED)
    for manifest in (mill.root / "manifests").rglob("step.toml"):
        text = manifest.read_text().replace("milling.recipe:run", "milling.watched:run")
        manifest.write_text(text)
    monkeypatch.setenv("MILL_WATCH", str(mill.root / "watch"))
    (mill.root / "watch").mkdir()
    yield mill
    for run in list_runs(mill.home):  # what a failing test has left
        for attempt in run.attempts:
            kill_job(attempt)


def fork_command(words: Sequence[str], output: Path, gate: tuple[int, int] | None = None) -> int:
    """Run a command line in a process of its own, once its gate is open; its process id.

    A fork, because an interpreter takes longer to start than the moments that are of interest.
    """
    output.touch()
    pid = os.fork()
    if pid:
        return pid
    code = 99
    try:
        handle = os.open(output, os.O_WRONLY)
        os.dup2(handle, 1)
        os.dup2(handle, 2)
        sys.stdout = os.fdopen(1, "w", buffering=1, closefd=False)
        sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)
        if gate:
            os.close(gate[1])
            os.read(gate[0], 1)  # returns when nobody can write any more
        code = main(list(words))
    finally:
        os._exit(code)


def run_at_once(words: Sequence[str], folder: Path) -> None:
    """Many equal commands that begin at the same moment; each must exit with 0."""
    gate = os.pipe()
    outputs = [folder / f"command-{number}.txt" for number in range(COMMANDS)]
    children = [fork_command(words, output, gate) for output in outputs]
    for handle in gate:
        os.close(handle)
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    said = [path.read_text() for path, code in zip(outputs, codes, strict=True) if code]
    assert codes == [0] * COMMANDS, "\n---\n".join(said)


def check(mill: Any, attempts: list[str]) -> None:
    """Each run has these attempts, did each step once, and never had two workers."""
    assert list((mill.root / "watch").iterdir()) == []
    # The outputs are there a moment before the worker, which need not be watched, writes its end.
    until(lambda: all(run.attempts[-1].recorded_end for run in list_runs(mill.home)))
    for run in list_runs(mill.home):
        assert [attempt.state for attempt in run.attempts] == attempts
        assert [line["step"] for line in read_metrics(run.path / "metrics.jsonl")] == [1, 2, 3, 4]


def kill_all(mill: Any, command: int, attempt: Attempt) -> None:
    """Command line and worker, with no word."""
    for pid in (command, (attempt.owner or {})["pid"]):
        os.kill(pid, signal.SIGKILL)
    os.waitpid(command, 0)
    until(lambda: not find_marked(attempt.mark))
    shutil.rmtree(mill.root / "watch")
    (mill.root / "watch").mkdir()


@pytest.mark.parametrize("number", ROUNDS)
def test_after_a_kill_one_goes_on_and_the_others_follow_it(
    watched: Any, tmp_path: Path, number: int
) -> None:
    gate = watched.root / "gate"
    words = ["steps", "run", "mill/grow", "hold_at=3", f"gate={gate}", "save_every=1"]
    command = fork_command(words, tmp_path / "first.txt")
    until(lambda: "holding" in (tmp_path / "first.txt").read_text())
    (run,) = list_runs(watched.home)
    kill_all(watched, command, run.attempts[0])
    gate.touch()
    run_at_once(words, tmp_path)
    check(watched, ["LOST", "COMPLETED"])


@pytest.mark.parametrize("number", ROUNDS)
def test_on_an_empty_store_one_begins_each_run(watched: Any, tmp_path: Path, number: int) -> None:
    run_at_once(["steps", "run", "mill/grind"], tmp_path)
    check(watched, ["COMPLETED"])
    assert len(list_runs(watched.home)) == 2


@pytest.mark.parametrize("number", ROUNDS)
def test_submitted_at_once_they_are_one_job(watched: Any, tmp_path: Path, number: int) -> None:
    run_at_once(["steps", "run", "mill/grind", "-b", "local"], tmp_path)
    until(lambda: all(run.outputs for run in list_runs(watched.home)))
    check(watched, ["COMPLETED"])
