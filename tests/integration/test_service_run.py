"""A step that runs until it is stopped: never reused, attached to while it lives."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from nemotron_style.runtime.catalog.catalog import load_catalog
from nemotron_style.runtime.cli import main
from nemotron_style.runtime.launch.status import read_status
from nemotron_style.runtime.run.folder import RunFolder
from waiting import until

Capture = pytest.CaptureFixture[str]

MANIFEST = """
[step]
id = "mill/wheel"
name = "Wheel"
category = "mill"
description = "Turns until it is stopped."

[run]
entrypoint = "milling.wheel:run"
config = "milling.config:Config"
service = true
"""

RECIPE = """
import time


def run(config, ctx):
    ctx.say("turning")
    while not ctx.stopping:
        time.sleep(0.005)
    ctx.summarise(turns=1)
"""


@pytest.fixture
def wheel(mill: Any) -> Any:
    """The mill with a step that is a service."""
    mill.write("code/milling/wheel.py", RECIPE)
    mill.write("manifests/mill/wheel/step.toml", MANIFEST)
    mill.write("manifests/mill/wheel/default.yaml", "steps: 4\n")
    return mill


def start(capsys: Capture) -> tuple[dict[str, Any], RunFolder]:
    capsys.readouterr()
    assert main(["steps", "run", "mill/wheel", "-b", "local", "--json"]) == 0
    (run,) = json.loads(capsys.readouterr().out)["runs"]
    folder = RunFolder(Path(run["path"]))
    until(lambda: "turning" in folder.last_attempt.log.read_text())
    return run, folder


def test_a_live_one_is_attached_to_and_a_stopped_one_started_again(
    wheel: Any, capsys: Capture
) -> None:
    first, folder = start(capsys)
    assert first["decision"] == "run"
    again, _ = start(capsys)
    assert (again["decision"], again["run_id"], again["attempt"]) == ("attach", folder.run_id, 1)

    assert main(["runs", "cancel", folder.run_id]) == 0
    assert read_status(folder).state == "COMPLETED"
    until(lambda: folder.last_attempt.record.get("exit_code") == 0)  # written after its outputs
    assert folder.outputs == {"outputs": {}, "figures": {"turns": 1}}

    third, other = start(capsys)
    assert third["decision"] == "run"
    assert "was stopped; generation 1" in third["reason"]
    assert other.run_id != folder.run_id
    assert main(["runs", "cancel", other.run_id]) == 0
    until(lambda: read_status(other).state == "COMPLETED")


def test_one_that_died_is_started_again_in_its_place(wheel: Any, capsys: Capture) -> None:
    _, folder = start(capsys)
    os.kill(folder.last_attempt.owner["pid"], signal.SIGKILL)
    until(lambda: read_status(folder).is_final)
    assert read_status(folder).state == "FAILED"
    again, same = start(capsys)
    assert (again["decision"], same.run_id, again["attempt"]) == ("resume", folder.run_id, 2)
    assert main(["runs", "cancel", same.run_id]) == 0


def test_the_lists_say_that_it_makes_nothing(wheel: Any, capsys: Capture) -> None:
    assert main(["steps", "show", "mill/wheel"]) == 0
    assert "It runs until it is stopped." in capsys.readouterr().out
    assert main(["steps", "list"]) == 0
    _, found, entry = capsys.readouterr().out.partition("mill/wheel ")
    assert found
    assert entry.partition("[")[2].startswith("nothing -> nothing]")


@pytest.mark.parametrize(
    ("old", "new", "fix"),
    [
        ("service = true", "", "service = true"),
        ("[run]", '[[produces]]\nname = "sack"\ntype = "flour"\n\n[run]', "take them out"),
    ],
)
def test_a_service_makes_nothing_and_every_other_step_something(
    wheel: Any, old: str, new: str, fix: str
) -> None:
    wheel.write("manifests/mill/wheel/step.toml", MANIFEST.replace(old, new))
    (problem,) = load_catalog().problems
    assert problem.key == "produces"
    assert fix in problem.fix
