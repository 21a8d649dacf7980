"""``runs rerun``: a run beside the first one, and a verdict on what it made."""

from __future__ import annotations

import json
from typing import Any

import pytest

from nemotron_style.runtime.catalog.catalog import load_catalog
from nemotron_style.runtime.cli import main
from nemotron_style.runtime.errors import UsageError
from nemotron_style.runtime.planning import rerun as planning
from nemotron_style.runtime.planning.rerun import Rerun, plan_rerun
from nemotron_style.runtime.profiles.model import Mount, Profile
from nemotron_style.runtime.run.folder import RunFolder
from nemotron_style.runtime.run.listing import find_run
from nemotron_style.runtime.run.snapshot import plan_snapshot, write_snapshot

Capture = pytest.CaptureFixture[str]

# A step whose result hangs on a file that is no input of it.
MOODY = """
import json
from pathlib import Path


def run(config, ctx):
    mood = Path(config.gate).read_text()
    rows = [{"id": n, "mood": mood if n == 2 else "calm"} for n in range(4)]
    text = "".join(json.dumps(row) + "\\n" for row in rows)
    (ctx.output("sack").path / "rows.jsonl").write_text(text)
    (ctx.output("chaff").path / "chaff.txt").write_text("-")
"""


@pytest.fixture
def ground(mill: Any, capsys: Capture) -> Any:
    """A mill in which grow and grind were run."""
    assert main(["steps", "run", "mill/grind"]) == 0
    capsys.readouterr()
    return mill


def plan(mill: Any, word: str = "mill-grind-default:v1", **profile: Profile) -> Rerun:
    run = find_run(mill.store, word)
    return plan_rerun(run, store=mill.store, catalog=load_catalog(), **profile)


def refuse(mill: Any, word: str = "mill-grind-default:v1") -> str:
    with pytest.raises(UsageError) as refused:
        plan(mill, word)
    return str(refused.value)


def test_a_repetition_is_a_run_of_its_own_and_bit_identical(ground: Any, capsys: Capture) -> None:
    before = ground.store.resolve("mill-grind-default")
    assert main(["runs", "rerun", "mill-grind-default:v1"]) == 0
    out = capsys.readouterr().out
    assert "sack: bit-identical: mill-grind-default:v1 and mill-grind-default.rerun:v1" in out
    assert "chaff: bit-identical: mill-grind-default.chaff:v1 and" in out

    again = ground.store.resolve("mill-grind-default.rerun:v1")
    assert ground.store.resolve("mill-grind-default:latest") == before
    assert again.digest == before.digest
    first, second = before.record.producer, again.record.producer
    assert (first.rerun_of, second.rerun_of) == ("", first.run_id)
    assert first.run_id != second.run_id
    assert again.record.inputs == before.record.inputs
    assert ground.store.verify_all(deep=True)[1] == []
    assert main(["artifacts", "lineage", again.ref]) == 0
    assert f"repeating {first.run_id}" in capsys.readouterr().out

    assert plan(ground).run.decision.reason == f"repetition 2 of {first.run_id}"
    (ground.home / "runs" / second.run_id).rename(ground.root / "lost")  # its artifacts stay
    assert plan(ground).run.decision.reason == f"repetition 2 of {first.run_id}"
    (ground.root / "lost").rename(ground.home / "runs" / second.run_id)
    assert main(["steps", "run", "mill/grind", "--json"]) == 0
    assert [run["decision"] for run in json.loads(capsys.readouterr().out)["runs"]] == ["reuse"] * 2


@pytest.mark.filterwarnings("error")
def test_what_is_planned_for_a_repetition(ground: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    # one that was begun is gone on with
    begun = plan(ground).run
    assert begun.decision.action == "run"
    assert RunFolder(begun.plan.record_dir).reserve(begun.plan)
    assert RunFolder(begun.plan.record_dir).claim_attempt()
    again = plan(ground).run
    assert (again.plan, again.decision.action) == (begun.plan, "attach")
    assert "it is PENDING and has made nothing" in refuse(ground, begun.plan.run_id)

    # another profile changes where it runs, and not what it is
    mount = Mount(source="/data", target="/data")
    moved = plan(ground, profile=Profile(name="other", env={"A": "1"}, mounts=(mount,))).run.plan
    assert (moved.profile, moved.env) == ("other", {"A": "1"})
    assert [each.source for each in moved.mounts] == ["/data"]
    assert (moved.run_id, moved.config) == (begun.plan.run_id, begun.plan.config)

    # other software is listed
    now = planning.describe_environment()
    monkeypatch.setattr(planning, "describe_environment", lambda: {**now, "python": "4.0"})
    assert plan(ground).surroundings == (f"environment.python: {now['python']} -> 4.0",)


def test_what_is_not_as_it_was_is_refused_by_name(ground: Any, capsys: Capture) -> None:
    source = ground.root / "code/milling/recipe.py"
    source.write_text(source.read_text() + "\n# changed\n")
    grain = ground.store.resolve("mill-grow-default:v1")
    (grain.path / "sack.txt").chmod(0o644)
    (grain.path / "sack.txt").write_text("weevils")
    told = refuse(ground).splitlines()
    assert len(told) == 2
    assert "sack.txt" in told[0]
    assert told[1].startswith("mill/grind: code: the code of the step was changed since")
    assert main(["runs", "rerun", "mill-grind-default:v1"]) == 2

    refs = ["mill-grow-default:v1", "mill-grind-default:v1", "mill-grind-default.chaff:v1"]
    run_id = ground.store.resolve(refs[1]).record.producer.run_id
    assert main(["artifacts", "rm", *refs, "--yes"]) == 0
    assert "mill/grind: input: mill-grow-default:v1 was removed by" in refuse(ground, run_id)
    assert not list(ground.store.artifacts("mill-grind-default.rerun"))


def test_where_it_differs_is_said(mill: Any, capsys: Capture) -> None:
    mill.write("code/milling/moody.py", MOODY)
    mill.add_step("mill/moody", makes="grain")
    manifest = mill.root / "manifests/mill/moody/step.toml"
    manifest.write_text(manifest.read_text().replace("recipe:run", "moody:run"))
    mood = mill.write("mood.txt", "calm")
    assert main(["steps", "run", "mill/moody", f"gate={mood}"]) == 0
    mood.write_text("wild")
    capsys.readouterr()
    assert main(["runs", "rerun", "latest", "--json"]) == 1
    told = json.loads(capsys.readouterr().out)
    assert told["identical"] is False
    assert told["outputs"]["chaff"]["verdict"] == "bit-identical"
    [finding] = told["outputs"]["sack"]["content"]
    assert finding["path"] == "rows.jsonl"
    assert finding["examples"] == ['row 3 (2) changed: mood: "calm" -> "wild"']
    shown = mill.store.resolve("mill-moody-default.rerun").record.producer
    assert shown.rerun_of == told["rerun_of"]


def test_services_are_started_beside_it_and_not_repeated(press: Any, capsys: Capture) -> None:
    assert main(["steps", "run", "mill/press"]) == 0
    capsys.readouterr()
    assert main(["runs", "rerun", "latest", "--json"]) == 0
    run_id = json.loads(capsys.readouterr().out)["run_id"]
    folder = RunFolder(press.home / "runs" / run_id)
    assert all((folder.path / "services" / name).is_dir() for name in folder.plan.services)
    assert folder.plan.services
    service = press.compile("mill/wheel").target.plan
    assert RunFolder(service.record_dir).reserve(service)
    assert "mill/wheel is a service: it makes no artifact" in refuse(press, service.run_id)


def test_the_copy_of_the_code_is_used_where_the_run_has_one(ground: Any) -> None:
    folder = find_run(ground.store, "mill-grind-default:v1")
    first = folder.plan
    copy = plan_snapshot(ground.home, first.entrypoint, first.config_class)
    write_snapshot(copy, first.entrypoint, first.config_class)
    kept = first.model_copy(update={"snapshot": copy})
    (folder.path / "plan.json").write_text(kept.to_json())
    source = ground.root / "code/milling/recipe.py"
    source.write_text("raise SystemExit('another time')\n")
    assert plan(ground).run.plan.snapshot == copy
    assert main(["runs", "rerun", folder.run_id]) == 0
    changed = next((ground.home / "code").rglob("recipe.py"))
    changed.write_text("")
    assert "this copy of the code was changed after it was made" in refuse(ground)
