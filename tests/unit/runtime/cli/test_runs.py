"""``runs``: list, show, logs and why."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from kept_store import fill_once
from nemotron_style.runtime.cli import main
from nemotron_style.runtime.run.folder import RunFolder
from nemotron_style.runtime.run.listing import list_runs

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def mill_root(steady_mill_root: Path) -> Path:
    return steady_mill_root


@pytest.fixture
def ground(mill: Any, kept: Path, capsys: Capture) -> Any:
    """A mill in which grind was run once, and failed once with other settings."""

    def run() -> None:
        assert main(["steps", "run", "mill/grind"]) == 0
        assert main(["steps", "run", "mill/grind", "raise_at=2", "steps=5"]) == 1

    fill_once(mill.home, kept, run)
    capsys.readouterr()
    return mill


def find(mill: Any, step: str, state: str = "COMPLETED") -> str:
    (run_id,) = [run.run_id for run in list_runs(mill.home, step=step) if run.state == state]
    return run_id


def show(capsys: Capture, *words: str) -> str:
    assert main(["runs", *words]) == 0
    return capsys.readouterr().out


def test_list_tells_every_run(ground: Any, capsys: Capture) -> None:
    lines = show(capsys, "list").splitlines()
    assert len(lines) == 4
    assert lines[0].split() == [
        *("RUN", "STEP", "CONFIG", "STATE", "ATTEMPTS", "STARTED", "TOOK", "ARTIFACTS")
    ]
    assert "just now" in lines[2]
    assert lines[1].split()[1:5] == ["mill/grind", "default", "FAILED", "1"]
    document = json.loads(show(capsys, "list", "--step", "grow", "--json"))
    (run,) = document["runs"]
    assert run["state"] == "COMPLETED"
    assert run["outputs"]["sack"]["ref"] == "mill-grow-default:v1"
    assert run["figures"] == {"total": 10}


def test_an_empty_store_lists_nothing(mill: Any, capsys: Capture) -> None:
    assert len(show(capsys, "list").splitlines()) == 1
    assert main(["runs", "show", "latest"]) == 2


def test_show_by_id_prefix_ref_and_latest(ground: Any, capsys: Capture) -> None:
    run_id = find(ground, "mill/grind")
    whole = show(capsys, "show", run_id)
    assert whole.startswith(run_id)
    assert "total  10" in whole
    assert show(capsys, "show", run_id[:-3]) == whole
    assert show(capsys, "show", "mill-grind-default:v1") == whole
    failed = show(capsys, "show", "latest")
    assert failed.startswith(find(ground, "mill/grind", "FAILED"))
    assert "RuntimeError: the mill stone broke" in failed
    document = json.loads(show(capsys, "show", run_id, "--json"))
    assert document["plan"]["run_id"] == run_id


def test_an_unclear_run_is_told(ground: Any, capsys: Capture) -> None:
    assert main(["runs", "show", "mill-grind-"]) == 2
    assert "2 runs begin so" in capsys.readouterr().err
    assert main(["runs", "logs", "mill-grnid-default"]) == 2
    assert "no such run" in capsys.readouterr().err


def test_logs_of_an_attempt(ground: Any, capsys: Capture) -> None:
    assert "the mill stone broke" in show(capsys, "logs", "latest")
    assert main(["steps", "run", "mill/grind", "raise_at=2", "steps=5"]) == 1
    capsys.readouterr()
    second = show(capsys, "logs", "latest", "-f")
    assert "Traceback" in second
    assert "Traceback" in show(capsys, "logs", "latest", "--attempt", "1")
    assert main(["runs", "logs", "latest", "--attempt", "3"]) == 2
    assert "has no attempt 3; allowed: 1, 2" in capsys.readouterr().err


def test_why_names_the_keys_that_differ(ground: Any, capsys: Capture) -> None:
    shown = show(capsys, "why", "latest")
    assert f"run: differs from {find(ground, 'mill/grind')}: raise_at: 0 -> 2 (and 1 more)" in shown
    assert "      steps: 4 -> 5" in shown
    assert "run: first run of this step" in show(capsys, "why", find(ground, "mill/grow"))


def test_why_tells_of_reuse_resume_and_damage(ground: Any, capsys: Capture) -> None:
    assert main(["steps", "run", "mill/grind", "raise_at=2", "steps=5"]) == 1
    assert main(["steps", "run", "mill/grind"]) == 0
    run_id = find(ground, "mill/grind")
    capsys.readouterr()
    failed = find(ground, "mill/grind", "FAILED")
    assert "resume: attempt 1 failed; starts over" in show(capsys, "why", failed)
    assert "attempt 1: RuntimeError: the mill stone broke" in show(capsys, "why", failed)
    reused = f"reuse: same fingerprint as {run_id}, outputs unchanged by size and time"
    assert reused in show(capsys, "why", run_id)
    decisions = json.loads(show(capsys, "why", run_id, "--json"))["decisions"]
    assert [decision["action"] for decision in decisions] == ["run", "reuse"]

    sack = ground.store.resolve("mill-grind-default:v1").path / "sack.txt"
    sack.chmod(0o644)
    sack.write_text("weevils\n")
    assert main(["steps", "run", "mill/grind"]) == 0
    capsys.readouterr()
    shown = show(capsys, "why", "latest")
    assert f"run: the outputs of {run_id} no longer verify; generation 1" in shown
    assert "sack.txt" in shown
    assert ground.store.resolve("mill-grind-default").record.version == 2
    assert sack.read_text() == "weevils\n"  # the damaged version was not touched


def test_a_decision_that_only_repeats_is_kept_once(ground: Any, capsys: Capture) -> None:
    for _ in range(3):
        assert main(["steps", "run", "mill/grow"]) == 0
    capsys.readouterr()
    shown = show(capsys, "why", find(ground, "mill/grow"))
    assert shown.count("reuse:") == 1


def test_a_removed_run_leaves_what_it_made(ground: Any, capsys: Capture) -> None:
    run_id = find(ground, "mill/grind")
    kept = [run.run_id for run in list_runs(ground.home) if run.run_id != run_id]
    assert "1 would go" in show(capsys, "rm", run_id)
    assert json.loads(show(capsys, "rm", run_id, "--json"))["going"][run_id] > 0
    assert find(ground, "mill/grind") == run_id
    assert "1 removed" in show(capsys, "rm", run_id, "--yes")
    assert [run.run_id for run in list_runs(ground.home)] == kept
    assert not list(ground.home.glob(f"index/run/*/*~{run_id}"))
    assert list((ground.home / "staging").glob("*")) == []
    artifact = ground.store.resolve("mill-grind-default")
    assert ground.store.verify(artifact, deep=True) == []
    assert main(["runs", "show", run_id]) == 2
    assert main(["steps", "run", "mill/grind"]) == 0  # it runs again, and makes nothing new
    assert ground.store.resolve("mill-grind-default").ref == artifact.ref


def test_a_run_under_way_and_what_it_waits_for_are_not_removed(
    ground: Any, capsys: Capture
) -> None:
    made, failed = find(ground, "mill/grow"), find(ground, "mill/grind", "FAILED")
    plan = ground.compile("mill/grind", "steps=6").target.plan
    waiting = RunFolder(plan.run_dir)
    assert waiting.reserve(plan)
    assert main(["runs", "rm", waiting.run_id, made, failed, "--yes"]) == 2
    told = capsys.readouterr().err
    assert f"{waiting.run_id}: stays" in told
    assert f"{made}: stays" in told
    assert failed not in told
    assert len(list_runs(ground.home)) == 4


def test_a_run_that_is_begun_again_meanwhile_stays(
    ground: Any, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = find(ground, "mill/grind", "FAILED")
    monkeypatch.setattr(RunFolder, "claim_attempt", lambda *_, **__: None)
    assert main(["runs", "rm", run_id, "--yes"]) == 1
    assert "begun again" in capsys.readouterr().err
    assert find(ground, "mill/grind", "FAILED") == run_id
