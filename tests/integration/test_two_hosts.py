"""Two machines on one store: what is under way on one is known, followed and ended on the other."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hosts import Host, has_namespaces
from nemotron_style.runtime.run.attempt import Attempt
from nemotron_style.runtime.run.folder import RunFolder
from nemotron_style.runtime.run.listing import list_runs
from nemotron_style.runtime.step.metrics import read_metrics
from waiting import until

pytestmark = pytest.mark.skipif(not has_namespaces(), reason="namespaces are not allowed here")

SECONDS_TO_WAIT = 180.0


@pytest.fixture
def hosts(tmp_path: Path) -> Iterator[tuple[Host, Host]]:
    both = Host("alpha", tmp_path), Host("beta", tmp_path)
    yield both
    for host in both:
        host.power_off()


def held(mill: Any) -> list[str]:
    return ["steps", "run", "mill/grow", "hold_at=3", f"gate={mill.root}/gate", "save_every=1"]


def only_run(mill: Any) -> RunFolder:
    (run,) = list_runs(mill.home)
    return run


def await_hold(mill: Any) -> Attempt:
    until(lambda: any("holding" in attempt.log.read_text() for attempt in all_attempts(mill)))
    return all_attempts(mill)[-1]


def all_attempts(mill: Any) -> list[Attempt]:
    return [attempt for run in list_runs(mill.home) for attempt in run.attempts]


def picture(home: Path) -> dict[str, tuple[int, int]]:
    """Sizes and times of everything in the store but the sign of life, which its worker touches."""
    return {
        str(path): (path.stat().st_size, path.stat().st_ctime_ns)
        for path in home.rglob("*")
        if path.name != "sign"
    }


def test_a_look_from_elsewhere_changes_nothing_and_the_run_completes(
    mill: Any, cli: Any, hosts: tuple[Host, Host]
) -> None:
    alpha, beta = hosts
    command = alpha.start(cli(*held(mill)), mill.root / "alpha.txt")
    attempt = await_hold(mill)
    run_id = attempt.run_dir.name
    before = picture(mill.home)
    readings = [["list", "--json"], ["show", run_id], ["why", run_id], ["logs", run_id]]
    readings.append(["wait", run_id, "--timeout", "0.1"])
    dry = [*held(mill), "--dry-run"]
    answers = beta.call(*(["runs", *words] for words in readings), dry)
    assert [code for code, *_ in answers] == [0, 0, 0, 0, 124, 0]
    assert picture(mill.home) == before
    (listed,) = json.loads(answers[0][1])["runs"]
    assert (listed["state"], listed["remote_host"]) == ("RUNNING", "alpha")
    assert abs(listed["last_sign"] - os.stat(attempt.path / "sign").st_mtime) < 60
    assert "under way on alpha, last sign " in answers[1][1]
    assert "holding" in answers[3][1]
    assert "attempt 1 is under way on alpha: RUNNING" in answers[5][1]
    same = beta.start(cli(*held(mill)), mill.root / "beta.txt")
    until(lambda: "holding" in (mill.root / "beta.txt").read_text())
    (mill.root / "gate").write_text("")
    assert [each.wait(SECONDS_TO_WAIT) for each in (command, same)] == [0, 0]
    run = only_run(mill)
    assert [one.state for one in run.attempts] == ["COMPLETED"]
    assert [line["step"] for line in read_metrics(run.path / "metrics.jsonl")] == [1, 2, 3, 4]
    assert (attempt.owner or {})["host"] == "alpha"


@pytest.mark.parametrize("way", [[], ["-b", "local"]])
def test_cancelled_from_elsewhere_it_saves(
    mill: Any, cli: Any, hosts: tuple[Host, Host], way: list[str]
) -> None:
    """Attached and detached."""
    alpha, beta = hosts
    command = alpha.start(cli(*held(mill), *way), mill.root / "alpha.txt")
    run_id = await_hold(mill).run_dir.name
    ((code, out, err),) = beta.call(["runs", "cancel", run_id])
    assert (code, "CANCELLED" in out) == (0, True), err
    assert command.wait(SECONDS_TO_WAIT) == (0 if way else 130)
    assert (only_run(mill).path / "checkpoints/step-00000003").is_dir()


def test_a_deaf_one_is_ended_at_once_from_elsewhere(
    mill: Any, cli: Any, hosts: tuple[Host, Host]
) -> None:
    recipe = mill.root / "code/milling/recipe.py"
    recipe.write_text(recipe.read_text().replace(" and not ctx.stopping:", ":"))
    alpha, beta = hosts
    command = alpha.start(cli(*held(mill)), mill.root / "alpha.txt")
    attempt = await_hold(mill)
    run_id = attempt.run_dir.name
    gentle, forced = beta.call(
        ["runs", "cancel", run_id, "--grace", "0.2"], ["runs", "cancel", run_id, "--force"]
    )
    assert gentle[0] == 1
    assert "alpha was asked to end it and has not answered" in gentle[2]
    assert (forced[0], "CANCELLED" in forced[1]) == (0, True), forced[2]
    assert command.wait(SECONDS_TO_WAIT) != 0
    assert alpha.call(["runs", "list", "--json"])[0][0] == 0
    assert attempt.record["exit_code"] == 137


def test_a_machine_that_went_down_does_not_prove_anything(
    mill: Any, cli: Any, hosts: tuple[Host, Host]
) -> None:
    alpha, beta = hosts
    alpha.start(cli(*held(mill)), mill.root / "alpha.txt")
    run_id = await_hold(mill).run_dir.name
    alpha.power_off()
    listed, cancelled = beta.call(
        ["runs", "list", "--json"], ["runs", "cancel", run_id, "--grace", "0.1"]
    )
    assert json.loads(listed[1])["runs"][0]["state"] == "RUNNING"
    assert (cancelled[0], "--abandon declares" in cancelled[2]) == (1, True)
    (mill.root / "gate").write_text("")
    again = beta.call(["runs", "cancel", run_id, "--abandon"], held(mill))
    assert [code for code, *_ in again] == [0, 0], again
    assert "declared lost by its user; its last sign on alpha was " in again[0][1]
    assert [one.state for one in only_run(mill).attempts] == ["CANCELLED", "COMPLETED"]
