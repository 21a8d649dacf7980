"""Chains of steps: the dry run is the job, nothing is made twice, and profiles change nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kept_store import fill_once
from nemotron_style.runtime.cli import main

Capture = pytest.CaptureFixture[str]

BANNED = ("torch", "transformers", "megatron", "vllm", "ray", "leptonai", "submitit", "numpy")


@pytest.fixture
def chain(mill: Any) -> Any:
    """Five steps, one after the other: grow, grind, bake, toast, slice."""
    source = "inputs:\n  input: {{step: mill/{}, slot: sack}}\n"
    mill.add_step(
        "mill/toast", takes="bread", makes="bread", configs={"default": source.format("bake")}
    )
    mill.add_step(
        "mill/slice", takes="bread", makes="bread", configs={"default": source.format("toast")}
    )
    return mill


def run_json(capsys: Capture, *words: str) -> dict[str, Any]:
    capsys.readouterr()
    assert main(["steps", "run", *words, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert isinstance(document, dict)
    return document


@pytest.fixture
def mill_root(steady_mill_root: Path) -> Path:
    return steady_mill_root


@pytest.fixture
def run_all(chain: Any, kept: Path, capsys: Capture) -> Callable[[], list[dict[str, Any]]]:
    """Runs all five steps in the empty store, or fills it with what they made before."""

    def run() -> list[dict[str, Any]]:
        return fill_once(chain.home, kept, lambda: run_json(capsys, "mill/slice")["runs"])

    return run


def test_the_dry_run_on_an_empty_store_is_what_is_then_run(chain: Any, capsys: Capture) -> None:
    assert main(["steps", "run", "mill/slice", "-d"]) == 0
    shown = capsys.readouterr().out
    assert not chain.home.exists()
    document = run_json(capsys, "mill/slice")
    assert len(document["runs"]) == 5
    for run in document["runs"]:
        folder = chain.home / "runs" / run["run_id"]
        for name in ("plan.json", "launch.sh"):
            written = (folder / name).read_text()
            assert f"# runs/{run['run_id']}/{name}\n{written.rstrip()}\n" in shown
        assert f"$ bash {folder}/launch.sh\n" in shown


def test_the_plan_is_the_same_on_a_full_store(chain: Any, run_all: Any) -> None:
    before = chain.compile("mill/slice")
    run_all()
    after = chain.compile("mill/slice")
    assert [run.plan.to_json() for run in after.runs] == [run.plan.to_json() for run in before.runs]
    assert {run.decision.action for run in after.runs} == {"reuse"}


def test_a_second_run_reuses_everything(run_all: Any, cli: Any) -> None:
    first = run_all()
    done = subprocess.run(cli("steps", "run", "mill/slice", "--json"), capture_output=True)
    second = json.loads(done.stdout)
    assert {run["decision"] for run in second["runs"]} == {"reuse"}
    assert [run["outputs"] for run in second["runs"]] == [run["outputs"] for run in first]


def test_a_change_in_the_middle_runs_that_and_all_below(run_all: Any, capsys: Capture) -> None:
    run_all()
    document = run_json(capsys, "mill/toast", "+inputs.input.overrides.mill.speed=3")
    decisions = {run["step"]: run["decision"] for run in document["runs"]}
    assert decisions == {
        "mill/grow": "reuse",
        "mill/grind": "reuse",
        "mill/bake": "run",
        "mill/toast": "run",
    }
    bake = next(run for run in document["runs"] if run["step"] == "mill/bake")
    assert bake["details"] == ["mill.speed: 1 -> 3"]


def test_another_profile_and_store_path_give_the_same_runs(
    chain: Any, run_all: Any, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = run_all()[:3]
    chain.write("env.toml", '[other]\nexecutor = "local"\nsetup = ["true"]\nenv = { A = "1" }\n')
    monkeypatch.setenv("NEMOTRON_STYLE_HOME", str(chain.root / "elsewhere"))
    there = run_json(capsys, "mill/bake", "-r", "other")
    assert [run["run_id"] for run in there["runs"]] == [run["run_id"] for run in here]
    digests = [[run["outputs"]["sack"]["digest"] for run in way] for way in (here, there["runs"])]
    assert digests[0] == digests[1]


def test_a_grain_is_converted_on_the_way(chain: Any, capsys: Capture) -> None:
    run_json(capsys, "mill/grow")
    document = run_json(capsys, "mill/bake", "-i", "input=mill-grow-default")
    assert [run["step"] for run in document["runs"]] == ["mill/grind", "mill/bake"]
    bread = chain.store.resolve("mill-bake-default")
    assert (bread.path / "sack.txt").read_text().splitlines() == [
        "mill-grow- 10",
        "mill-grind 10",
        "mill-bake- 10",
    ]


def test_a_lost_artifact_is_made_again_and_what_hangs_on_it(
    chain: Any, run_all: Any, capsys: Capture
) -> None:
    run_all()
    flour = chain.store.resolve("mill-grind-default")
    (flour.path / "sack.txt").chmod(0o644)
    (flour.path / "sack.txt").unlink()
    document = run_json(capsys, "mill/bake")
    assert [run["decision"] for run in document["runs"]] == ["reuse", "run", "run"]
    assert "no longer verify" in document["runs"][1]["reason"]
    assert chain.store.resolve("mill-bake-default").record.inputs[0].ref == "mill-grind-default:v2"
    again = run_json(capsys, "mill/bake")
    assert {run["decision"] for run in again["runs"]} == {"reuse"}


def test_a_dry_run_shows_the_command_of_every_step(chain: Any, cli: Any) -> None:
    done = subprocess.run(cli("steps", "run", "mill/slice", "-d"), capture_output=True, check=True)
    assert done.stdout.count(b"\n$ bash ") == 5


def test_neither_the_dry_run_nor_a_light_step_needs_heavy_packages(chain: Any) -> None:
    poison = f"import sys; sys.modules.update(dict.fromkeys({BANNED!r})); "
    start = "from nemotron_style.runtime.cli import main; sys.exit(main(sys.argv[1:]))"
    for words in (("-d",), ()):
        command = [sys.executable, "-c", poison + start, "steps", "run", "mill/grow", *words]
        done = subprocess.run(command, capture_output=True, text=True, env=dict(os.environ))
        assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_several_processes_run_as_ranks(mill: Any, capsys: Capture) -> None:
    pytest.importorskip("torch")
    run = 'launch = "torchrun"\n[run.resources]\nprocesses = ["devices"]'
    mill.add_step("mill/wide", makes="grain", run=run)
    document = run_json(capsys, "mill/wide", "devices=2")
    run_id = document["runs"][0]["run_id"]
    attempt = json.loads((mill.home / "runs" / run_id / "attempts/1/attempt.json").read_text())
    assert attempt["processes"] == 2
    assert document["runs"][0]["figures"] == {"total": 10}
