"""Another user of the same store, who may read some of it and write none of it."""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nemotron_style.runtime.cli import main
from nemotron_style.runtime.launch.registry import find_launcher
from nemotron_style.runtime.run.folder import RunFolder
from nemotron_style.runtime.run.listing import list_runs

pytestmark = pytest.mark.skipif(os.getuid() != 0, reason="only root can become somebody else")

NOBODY = 65534


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    """A directory that others may enter; pytest's own is closed to them."""
    path = Path(tempfile.mkdtemp(prefix="colleague-"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


def call(mill: Any, *words: str) -> tuple[int, str, str]:
    """Exit code, output and errors of a command line of somebody else."""
    outputs = [mill.root.parent / name for name in ("out.txt", "err.txt")]
    handles = [os.open(path, os.O_CREAT | os.O_WRONLY | os.O_TRUNC) for path in outputs]
    pid = os.fork()
    if pid == 0:
        code = 99
        try:
            os.dup2(handles[0], 1)
            os.dup2(handles[1], 2)
            sys.stdout = os.fdopen(1, "w", buffering=1, closefd=False)
            sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)
            find_launcher.cache_clear()  # this process has started nothing
            os.setgroups([])
            os.setgid(NOBODY)
            os.setuid(NOBODY)
            code = main(list(words))
        finally:
            os._exit(code)
    for handle in handles:
        os.close(handle)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    out, err = (path.read_text() for path in outputs)
    assert "Traceback" not in out + err
    return code, out, err


def picture(home: Path) -> dict[str, tuple[int, int]]:
    return {str(path): (path.lstat().st_size, path.lstat().st_ctime_ns) for path in home.rglob("*")}


def lose(folder: RunFolder) -> None:
    """The same run with an attempt that died without a word."""
    attempt = folder.attempts[-1]
    shutil.rmtree(attempt.path)
    (folder.path / "outputs.json").unlink()
    pid = os.fork()
    if pid == 0:
        folder.claim_attempt()
        os._exit(0)
    os.waitpid(pid, 0)


@pytest.fixture
def stocked(mill: Any, capsys: pytest.CaptureFixture[str]) -> Any:
    """A store with a complete run, and one that was lost."""
    assert main(["steps", "run", "mill/grow"]) == 0
    assert main(["steps", "run", "mill/grow", "steps=5"]) == 0
    lose(list_runs(mill.home)[0])
    return mill


def test_what_is_shown_to_them_and_what_they_reuse_changes_nothing(stocked: Any) -> None:
    lost, complete = (run.run_id for run in list_runs(stocked.home))
    before = picture(stocked.home)
    code, out, err = call(stocked, "runs", "list", "--json")
    states = {run["run_id"]: run["state"] for run in json.loads(out)["runs"]}
    assert (code, states) == (0, {lost: "LOST", complete: "COMPLETED"}), out
    for words in (["show"], ["why"], ["logs"], ["logs", "-f"]):
        assert call(stocked, "runs", *words, lost)[0] == 0
    assert call(stocked, "runs", "wait", lost)[0] == 1
    code, out, err = call(stocked, "steps", "run", "mill/grow")
    assert (code, "reuse: same fingerprint" in out) == (0, True), err
    assert call(stocked, "steps", "run", "mill/grow", "steps=5", "-d")[0] == 0
    code, out, err = call(stocked, "steps", "run", "mill/grow", "steps=5")
    assert (code in (1, 2), str(stocked.home) in err) == (True, True), err
    assert picture(stocked.home) == before


@pytest.mark.parametrize("closed", ["", "attempts", "attempts/1", "attempts/1/attempt.json"])
def test_a_run_that_they_cannot_read_is_named_and_the_others_are_shown(
    stocked: Any, closed: str
) -> None:
    """As one made with the umask 077; and it is not called LOST for that."""
    hidden, complete = list_runs(stocked.home)
    (hidden.path / closed).chmod(0o600)
    code, out, err = call(stocked, "runs", "list", "--json")
    document = json.loads(out)
    assert (code, [run["run_id"] for run in document["runs"]]) == (0, [complete.run_id]), err
    (problem,) = document["passed_over"]
    assert problem["where"] == hidden.run_id
    assert "Permission denied" in problem["what"]
    code, out, err = call(stocked, "runs", "list")
    assert (code, complete.run_id in out, f"note: {hidden.run_id}: cannot be" in err) == (
        *(0, True, True),
    )
    assert call(stocked, "runs", "show", complete.run_id)[0] == 0
    code, out, err = call(stocked, "runs", "show", hidden.run_id)
    assert (code != 0, "Permission denied" in err) == (True, True)
