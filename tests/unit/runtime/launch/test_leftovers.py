"""What gc removes of ended runs, and what it leaves to those that go on."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from nemotron_style.runtime.cli import main
from nemotron_style.runtime.launch.leftovers import collect_leftovers
from nemotron_style.runtime.process import identify_process
from nemotron_style.runtime.run.attempt import Attempt
from nemotron_style.runtime.run.folder import SEAL, RunFolder
from nemotron_style.runtime.run.run_key import key_of_run

HOUR = 3600.0


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    """A run with one attempt that is under way and has begun an output."""
    folder = RunFolder(tmp_path / "store" / "runs" / "a-1")
    folder.path.mkdir(parents=True)
    (folder.path / "plan.json").write_text("{}")
    begin(folder)
    write(folder.path / "staging" / "1" / "model" / "weights")
    return folder


def begin(folder: RunFolder) -> Attempt:
    attempt = folder.claim_attempt()
    assert attempt is not None
    assert attempt.take_ownership()
    return attempt


def write(path: Path) -> Path:
    path.parent.mkdir(parents=True)
    path.write_text("weights")
    return path


def collect(folder: RunFolder, *, grace_s: float = -1.0) -> list[str]:
    return collect_leftovers(folder.path.parents[1], grace_s=grace_s).removed


def test_what_an_ended_attempt_staged_is_removed_after_its_grace(folder: RunFolder) -> None:
    folder.attempts[0].close("FAILED")
    assert collect(folder, grace_s=HOUR) == []
    assert collect(folder) == ["runs/a-1/staging/1"]
    assert not (folder.path / "staging" / "1").exists()


def test_the_key_of_a_run_that_is_gone_is_removed_after_its_grace(folder: RunFolder) -> None:
    store = folder.path.parents[1]
    own = key_of_run(folder.path, "a", folder.path / "plan.json")
    gone, earlier = own.with_name("1~a-0"), own.with_name("1~a-1")
    own.parent.mkdir(parents=True)
    for key in (gone, earlier, own.with_name("no key")):
        key.touch()
    assert collect(folder, grace_s=HOUR) == []
    assert collect(folder) == [str(gone.relative_to(store))]  # the other may be of a copied store
    for key in (gone, own):
        key.touch()
    assert set(collect(folder)) == {str(each.relative_to(store)) for each in (gone, earlier)}
    assert sorted(own.parent.iterdir()) == sorted([own, own.with_name("no key")])


def test_an_attempt_that_is_under_way_keeps_what_it_staged(folder: RunFolder) -> None:
    assert collect(folder) == []
    folder.attempts[0].close("FAILED")
    begin(folder)
    assert collect(folder) == []  # the second attempt may read what the first one left


def test_an_attempt_that_died_without_a_word_keeps_nothing(folder: RunFolder) -> None:
    child = subprocess.Popen(["true"])
    dead = identify_process(child.pid)
    child.wait()
    attempt = folder.attempts[0]
    attempt.update(launcher=dead)
    (attempt.path / "owner.json").unlink()
    assert folder.state == "LOST"
    before = sorted(path for path in folder.path.rglob("*") if path.name != "weights")
    assert collect(folder) == ["runs/a-1/staging/1"]
    after = sorted(folder.path.rglob("*"))
    assert {*before} - {*after} == {folder.path / "staging" / "1" / part for part in ("", "model")}


def test_sealed_outputs_and_checkpoints_stay_until_the_run_is_complete(folder: RunFolder) -> None:
    (folder.path / "staging" / "1" / SEAL).write_text("{}")
    write(folder.path / "checkpoints" / "step-00000002" / "state")
    folder.attempts[0].close("FAILED")
    assert collect(folder) == []
    (folder.path / "outputs.json").write_text("{}")
    assert collect(folder) == ["runs/a-1/staging/1"]
    assert (folder.path / "checkpoints" / "step-00000002" / "state").exists()


def test_half_made_checkpoints_claims_and_run_folders_are_removed(folder: RunFolder) -> None:
    write(folder.path / "checkpoints" / ".attempt-1-step-00000004" / "state")
    write(folder.path / "attempts" / ".claim-1234" / "attempt.json")
    write(folder.path.parent / ".b-2-5678" / "plan.json")
    folder.attempts[0].close("CANCELLED")
    assert sorted(collect(folder)) == [
        "runs/.b-2-5678",
        "runs/a-1/attempts/.claim-1234",
        "runs/a-1/checkpoints/.attempt-1-step-00000004",
        "runs/a-1/staging/1",
    ]


def test_age_is_measured_by_the_clock_of_the_disk(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder.attempts[0].close("FAILED")
    monkeypatch.setattr("time.time", lambda: 4e9)  # this machine's clock is decades ahead
    assert collect(folder, grace_s=HOUR) == []
    for path in [*(folder.path / "staging" / "1").rglob("*"), folder.path / "staging" / "1"]:
        os.utime(path, (1e9, 1e9))
    assert collect(folder, grace_s=HOUR) == ["runs/a-1/staging/1"]


def test_the_command_says_how_much_it_freed(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder.attempts[0].close("FAILED")
    monkeypatch.setenv("NEMOTRON_STYLE_HOME", str(folder.path.parents[1]))
    assert main(["artifacts", "gc", "--grace", "0"]) == 0
    out = capsys.readouterr().out
    assert out.splitlines()[-1] == "1 removed (7 B), 0 finished, 0 keys written again"
