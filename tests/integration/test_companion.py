"""A service beside a step: started with it, waited for, told where it is, and stopped."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

from nemotron_style.runtime.catalog.catalog import load_catalog
from nemotron_style.runtime.cli import main
from nemotron_style.runtime.errors import ConfigError, UsageError
from nemotron_style.runtime.launch.status import read_status
from nemotron_style.runtime.process import is_alive
from nemotron_style.runtime.run.folder import RunFolder
from nemotron_style.runtime.run.identity_difference import describe_difference
from nemotron_style.runtime.run.listing import list_runs
from nemotron_style.runtime.run.plan import parse_plan
from waiting import until

Capture = pytest.CaptureFixture[str]


def run_of(press: Any) -> RunFolder:
    return list_runs(press.home, step="mill/press")[0]


def service_of(run: RunFolder) -> RunFolder:
    return RunFolder(run.path / "services" / "power")


def test_a_step_is_made_with_the_service_that_it_needs(press: Any, capsys: Capture) -> None:
    assert main(["steps", "run", "mill/press", "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert "service   power: mill/wheel (default), beside the step" in shown
    assert "$(((n = $(nproc) / 2) > 0 ? n : 1))" in shown  # they share the cores
    assert "input     power.grain: grain  run:mill-grow-" in shown
    assert not press.home.exists()

    assert main(["steps", "run", "mill/press"]) == 0
    artifact = press.store.resolve("mill-press-default")
    assert (artifact.path / "sack.txt").read_text().startswith("3 mill-grow")
    (edge,) = artifact.record.inputs
    assert (edge.slot, edge.kind) == ("power.grain", "grain")

    run = run_of(press)
    assert (run.path / "launch.sh").read_text() in shown, "the dry run is the job"
    service = service_of(run)
    (attempt,) = service.attempts
    assert attempt.record["state"] == "COMPLETED"
    assert attempt.log.read_text().split() == ["turning", "stopped"]
    assert not is_alive(attempt.owner)
    assert [each.run_id for each in list_runs(press.home)] == [run.run_id, *_makers(press)]
    assert main(["runs", "show", "latest"]) == 0
    assert str(attempt.log) in "".join(capsys.readouterr().out.split())

    assert main(["steps", "run", "mill/press"]) == 0
    assert "reuse: same fingerprint" in capsys.readouterr().out


def _makers(press: Any) -> list[str]:
    return [each.run_id for each in list_runs(press.home, step="mill/grow")]


def test_the_service_belongs_to_the_identity_and_its_address_does_not(press: Any) -> None:
    def identity(*overrides: str) -> dict[str, Any]:
        return dict(press.compile("mill/press", *overrides).target.plan.identity)

    first, other = identity(), identity("services.power.overrides.speed=4")
    assert describe_difference(first, other) == ["services.power.speed: 3 -> 4"]
    assert "services" not in identity("power.url=http://127.0.0.1:1")

    plan = press.compile("mill/press").target.plan
    assert parse_plan(plan.to_json(), where="here") == plan
    broken = json.loads(plan.to_json())
    broken["services"]["power"]["identity"]["config"]["speed"] = 5
    with pytest.raises(UsageError, match="changed after it was made"):
        parse_plan(json.dumps(broken), where="here")


def test_its_inputs_are_given_like_those_of_the_step(press: Any, capsys: Capture) -> None:
    sack = press.write("elsewhere/sack.txt", "rye")
    given = ["-i", f"power.grain={sack.parent}"]
    assert main(["steps", "run", "mill/press", *given]) == 0
    artifact = press.store.resolve("mill-press-default")
    assert (artifact.path / "sack.txt").read_text() == "3 rye"
    assert main(["steps", "run", "mill/press", *given, "power.url=http://h:1"]) == 2
    assert "power.grain: power.url=http://h:1 names a service that is there" in _told(capsys)


def test_what_is_missing_or_unknown_is_told(press: Any, capsys: Capture) -> None:
    press.write("manifests/mill/wheel/bare.yaml", "seed: 1\n")
    assert main(["steps", "run", "mill/press", "services.power.config=bare"]) == 2
    told = _told(capsys)
    assert "give -i power.grain=REF, or power.url of a service that is there already" in told
    assert main(["steps", "run", "mill/press", "+services.power.overrides.sped=4"]) == 2
    assert "speed" in _told(capsys)
    press.write("manifests/mill/press/typo.yaml", "services:\n  powr: {}\n")
    with pytest.raises(ConfigError, match=r"services.powr: mill/press has no such service"):
        press.compile("mill/press", config="typo")
    assert main(["steps", "run", "mill/press", "-i", "power.grian=x"]) == 2
    assert "did you mean 'power.grain'" in _told(capsys)


def _told(capsys: Capture) -> str:
    told = capsys.readouterr().err
    assert "Traceback" not in told
    return told


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ('step = "mill/wheel"', 'step = "mill/weel"', "did you mean 'mill/wheel'"),
        ('step = "mill/wheel"', 'step = "mill/bake"', "no such service"),
        ('name = "power"', 'name = "Po wer"', "lower-case name"),
        ('"power.url"', '"power.ulr"', "is no key of"),
    ],
)
def test_a_need_names_a_service_and_a_key(press: Any, old: str, new: str, told: str) -> None:
    manifest = press.root / "manifests/mill/press/step.toml"
    manifest.write_text(manifest.read_text().replace(old, new))
    with pytest.raises(ValueError, match=told):
        press.compile("mill/press")
    assert "mill/bake" in load_catalog().steps, "the others are not taken along"


@pytest.mark.parametrize(
    ("broken", "told"), [("start", "the axle broke"), ("loading", "it was killed")]
)
def test_one_that_does_not_come_up_ends_the_step(
    press: Any, capsys: Capture, broken: str, told: str
) -> None:
    load = "+services.power.overrides.load=1e9"
    word = f"+services.power.overrides.break_at={broken}"
    assert main(["steps", "run", "mill/press", load, word]) == 1
    shown = _told(capsys)
    assert "mill/wheel: ended before it was ready" in shown
    assert told in shown
    assert str(service_of(run_of(press)).last_attempt.log) in shown


def test_a_step_that_fails_stops_it_too(press: Any) -> None:
    assert main(["steps", "run", "mill/press", "fail=true"]) == 1
    assert service_of(run_of(press)).last_attempt.record["state"] == "COMPLETED"


def start_detached(press: Any, *words: str) -> tuple[RunFolder, RunFolder]:
    assert main(["steps", "run", "mill/press", "-b", "local", *words]) == 0
    until(lambda: list_runs(press.home, step="mill/press"))
    run = run_of(press)
    until(lambda: run.last_attempt and run.last_attempt.log.is_file())
    until(lambda: "power at" in run.last_attempt.log.read_text())
    return run, service_of(run)


def test_it_answers_until_a_step_that_is_stopped_has_finished(press: Any) -> None:
    run, service = start_detached(press, "hold=true")
    assert main(["runs", "cancel", run.run_id]) == 0
    assert run.last_attempt.record["error"] == "stopped while holding"
    until(lambda: not is_alive(service.last_attempt.owner))
    assert service.last_attempt.record["state"] == "COMPLETED"


def test_a_signal_to_the_whole_job_ends_the_step_first(press: Any, cli: Any) -> None:
    words = cli("steps", "run", "mill/press", "hold=true")
    with subprocess.Popen(words, start_new_session=True) as process:
        until(lambda: list_runs(press.home, step="mill/press"))
        run = run_of(press)
        until(lambda: run.last_attempt and "power at" in _text(run.last_attempt.log))
        session = os.getsid(run.last_attempt.owner["pid"])
        for pid in _session(session):
            os.kill(pid, signal.SIGTERM)
        assert process.wait(180) == 130
    assert run.last_attempt.record["error"] == "stopped while holding"
    assert service_of(run).last_attempt.record["state"] == "COMPLETED"


def test_a_killed_step_takes_it_along_and_the_next_attempt_has_its_own(press: Any) -> None:
    run, service = start_detached(press, "hold=true")
    first = service.last_attempt.owner
    os.kill(run.last_attempt.owner["pid"], signal.SIGKILL)
    until(lambda: not is_alive(first) and read_status(run).is_final)
    assert main(["steps", "run", "mill/press", "hold=true"]) == 0
    assert [attempt.number for attempt in service.attempts] == [1, 2]
    assert service.last_attempt.record["state"] == "COMPLETED"
    assert not is_alive(service.last_attempt.owner)


def _text(path: Path) -> str:
    return path.read_text() if path.is_file() else ""


def _session(leader: int) -> list[int]:
    listed = subprocess.run(
        ["ps", "-o", "pid=", "-s", str(leader)], capture_output=True, text=True, check=True
    )
    return [int(word) for word in listed.stdout.split()]
