"""Plans: sealed by their fingerprint, unaffected by where they run."""

from __future__ import annotations

import copy
import functools
import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from nemotron_style.runtime.cli import main
from nemotron_style.runtime.errors import UsageError
from nemotron_style.runtime.planning.planner import compile_pipeline
from nemotron_style.runtime.planning.request import RunRequest
from nemotron_style.runtime.run.plan import (
    Plan,
    identify,
    load_plan,
    load_sealed_plan,
    name_run,
    parse_plan,
)
from nemotron_style.runtime.validation import get_key, put_key
from nemotron_style.runtime.worker import main as worker
from plans import IDENTITY


def test_the_fingerprint_ignores_the_order_of_keys() -> None:
    shuffled = dict(reversed(IDENTITY.items()))
    assert identify(shuffled) == identify(IDENTITY)
    assert identify({**IDENTITY, "generation": 1}) != identify(IDENTITY)


def test_a_plan_round_trips_through_its_text(mill: Any) -> None:
    plan = mill.compile("mill/bake", "mill.speed=3").target.plan
    text = plan.to_json()
    again = parse_plan(text, where="plan.json")
    assert again == plan
    assert again.to_json() == text
    assert plan.run_id == name_run("mill/bake", plan.fingerprint)
    assert plan.run_id.startswith("mill-bake-")


def test_a_plan_that_was_edited_is_refused(mill: Any) -> None:
    document = json.loads(mill.compile("mill/grow").target.plan.to_json())
    document["identity"]["config"]["steps"] = 5
    with pytest.raises(UsageError, match=r"was changed after it was made"):
        parse_plan(json.dumps(document), where="plan.json")
    with pytest.raises(UsageError, match=r"plan.json: steps"):
        parse_plan(json.dumps({**document, "steps": 1}), where="plan.json")
    with pytest.raises(UsageError, match=r"No such file"):
        load_plan(mill.root / "nowhere.json")


def whole_plan(mill: Any) -> Plan:
    """A plan in which every field holds something."""
    mounts = ({"source": "/data", "target": "/data", "options": ("ro",)},)
    context = mill.context(
        env={"A": "1"}, image="img", secrets=("TOKEN",), setup=("true",), mounts=mounts
    )
    context = replace(context, detached=True)
    request = RunRequest("mill/press", name="oil")
    plan = compile_pipeline(request, context=context).target.plan
    return plan.model_copy(
        update={
            "notes": ("a note",),
            "records": "/records",
            "root": "s3://bucket/team",
            "site": {"qos": "high"},
            "files": {"job.yaml": "a: 1"},
        }
    )


def changes_of(value: Any) -> Iterator[Any]:
    """Other values of the same kind, and none of it."""
    if isinstance(value, bool) or value is None:
        yield not value
    elif isinstance(value, int | float):
        yield from (value + 1, float(value), str(value))
    elif isinstance(value, str):
        yield from (value + " ", value.upper() if value.upper() != value else "", None)
    elif isinstance(value, list):
        yield from (value[:-1] if value else [None], [*value, *value], {})
    else:
        yield from ({**value, "more": 1}, [])


def paths_of(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of everything in a document, tables and lists included."""
    pairs: Any = value.items() if isinstance(value, dict) else enumerate(value)
    for key, item in pairs:
        yield (*path, key)
        if isinstance(item, dict | list):
            yield from paths_of(item, (*path, key))


def test_no_worker_runs_a_plan_that_was_changed_in_any_field(press: Any) -> None:
    plan = whole_plan(press)
    path = plan.run_dir / "plan.json"
    path.parent.mkdir(parents=True)
    path.write_text(plan.to_json())
    assert load_sealed_plan(path) == plan
    document, tried = json.loads(plan.to_json()), set()
    for where in list(paths_of(document)):
        *above, last = where
        original = functools.reduce(lambda table, key: table[key], where, document)
        removed: Any = object()
        for change in (*changes_of(original), removed):
            edited = copy.deepcopy(document)
            table = functools.reduce(lambda table, key: table[key], above, edited)
            table[last] = change
            if change is removed:
                del table[last]
            text = json.dumps(edited, indent=2, sort_keys=True) + "\n"
            if text == plan.to_json():  # such as the float of a float
                continue
            path.write_text(text)
            with pytest.raises(UsageError, match=r"plan.json"):
                load_sealed_plan(path)
            tried.add(where[0])
    assert tried == {*Plan.model_fields, "seal"}


def test_a_plan_without_compiled_files_is_written_as_before_there_were_any(mill: Any) -> None:
    plan = mill.compile("mill/grow").target.plan
    assert plan.files == {}
    assert '"files"' not in plan.to_json()
    assert parse_plan(plan.to_json(), where="plan.json") == plan


def test_no_worker_runs_a_plan_of_which_one_byte_is_another(mill: Any) -> None:
    plan = mill.compile("mill/grow").target.plan
    path = plan.run_dir / "plan.json"
    path.parent.mkdir(parents=True)
    whole = plan.to_json().encode()
    for position in range(0, len(whole), 11):
        flipped = bytes([whole[position] ^ 1])
        path.write_bytes(whole[:position] + flipped + whole[position + 1 :])
        with pytest.raises(UsageError, match=r"plan.json"):
            load_sealed_plan(path)
    for text in (b"", whole[:-2], whole + b"\n", whole * 2, b"[]", b"[" * 5000, b"\xff"):
        path.write_bytes(text)
        with pytest.raises(UsageError, match=r"plan.json"):
            load_sealed_plan(path)


def test_no_worker_runs_the_whole_plan_of_another_run(mill: Any) -> None:
    grow, bake = mill.compile("mill/grow").target.plan, mill.compile("mill/bake").target.plan
    path = bake.run_dir / "plan.json"
    path.parent.mkdir(parents=True)
    path.write_text(grow.to_json())
    with pytest.raises(UsageError, match=r"is the plan of another run"):
        load_sealed_plan(path)


def test_a_plan_of_an_earlier_version_is_read_and_never_run(
    mill: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = mill.compile("mill/grow").target.plan
    document = json.loads(plan.to_json())
    del document["seal"]
    path = mill.write(f".nemotron-style/runs/{plan.run_id}/plan.json", json.dumps(document))
    assert load_plan(path) == plan
    assert main(["runs", "list"]) == main(["runs", "why", plan.run_id]) == 0
    assert plan.run_id in capsys.readouterr().out
    assert worker.main([str(path)]) == 2
    assert "has no seal" in capsys.readouterr().err
    assert main(["steps", "run", "mill/grow"]) == 0  # it is planned anew, in the same folder


def test_an_input_knows_its_producer(mill: Any) -> None:
    (planned,) = mill.compile("mill/bake").target.plan.inputs
    run_id, slot = planned.producer or ("", "")
    assert run_id.startswith("mill-grind-")
    assert slot == "sack"
    assert planned.model_copy(update={"source": "sha256:" + "0" * 64}).producer is None


def test_dotted_keys() -> None:
    values = {"model": {"path": None}}
    put_key(values, "model.path", "x")
    put_key(values, "data.files.train", 1)
    assert values == {"model": {"path": "x"}, "data": {"files": {"train": 1}}}
    assert get_key(values, "data.files.train") == 1
    assert get_key(values, "model.path.deeper") is None


def test_the_profile_does_not_enter_the_fingerprint(mill: Any) -> None:
    plain = compile_pipeline(RunRequest("mill/bake"), context=mill.context()).target.plan
    other = mill.context(env={"A": "1"}, image="img", secrets=("TOKEN",), setup=("true",))
    moved = compile_pipeline(RunRequest("mill/bake", name="loaf"), context=other).target.plan
    assert moved.fingerprint == plain.fingerprint
    assert moved != plain
    assert [output.name for output in moved.outputs] == ["loaf", "loaf.chaff"]


def test_cosmetic_keys_change_nothing_and_others_do(mill: Any) -> None:
    plain = mill.compile("mill/grow").target.plan
    assert mill.compile("mill/grow", "gate=/x").target.plan.run_id == plain.run_id
    assert mill.compile("mill/grow", "seed=7").target.plan.run_id != plain.run_id


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("milling.recipe:run", "milling.recipe:save"),
        ("milling.config:Config", "milling.config:Other"),
        ('type = "stone"', 'type = "grain"'),
        ('name = "chaff"', 'name = "husk"'),
        ('name = "mill/grow"', 'name = "mill/grow"\nversion = "2"'),
    ],
)
def test_what_the_manifest_runs_and_makes_enters_the_identity(
    mill: Any, old: str, new: str
) -> None:
    with (mill.root / "code/milling/config.py").open("a") as config:
        config.write("\n\nclass Other(Config):\n    pass\n")
    before = mill.compile("mill/grow").target.plan
    path = mill.root / "manifests/mill/grow/step.toml"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace("Turns", "Makes"))
    assert mill.compile("mill/grow").target.plan.fingerprint == before.fingerprint
    path.write_text(text.replace(old, new))
    assert mill.compile("mill/grow").target.plan.fingerprint != before.fingerprint


def test_the_code_enters_the_identity(mill: Any) -> None:
    before = mill.compile("mill/grow").target.plan
    mill.write("code/milling/extra.py", "SPEED = 1\n")
    after = mill.compile("mill/grow").target.plan
    assert isinstance(after, Plan)
    assert after.identity["code"] != before.identity["code"]
    assert after.run_id != before.run_id
