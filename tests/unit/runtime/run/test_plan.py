"""Plans: sealed by their fingerprint, unaffected by where they run."""

from __future__ import annotations

import json
from typing import Any

import pytest

from nemotron_style.runtime.errors import UsageError
from nemotron_style.runtime.run.plan import (
    Plan,
    describe_difference,
    identify,
    load_plan,
    name_run,
    parse_plan,
)
from nemotron_style.runtime.validation import get_key, put_key

IDENTITY = {
    "step": "mill/bake",
    "manifest_version": "1",
    "config": {"steps": 40, "mill.speed": 1},
    "inputs": {"input": "run:mill-grind-0123456789ab/sack"},
    "code": "a" * 64,
    "generation": 0,
}


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


def test_an_input_knows_its_producer(mill: Any) -> None:
    (planned,) = mill.compile("mill/bake").target.plan.inputs
    run_id, slot = planned.producer or ("", "")
    assert run_id.startswith("mill-grind-")
    assert slot == "sack"
    assert planned.model_copy(update={"source": "sha256:" + "0" * 64}).producer is None


def test_differences_name_the_keys() -> None:
    changed = {
        **IDENTITY,
        "config": {"steps": 60, "depth": None},
        "inputs": {"input": "sha256:00"},
        "code": "b" * 64,
    }
    lines = describe_difference(IDENTITY, changed)
    assert "steps: 40 -> 60" in lines
    assert "mill.speed: 1 -> (absent)" in lines
    assert "depth: (absent) -> null" in lines
    assert 'inputs.input: "run:mill-grind-0123456789ab/sack" -> "sha256:00"' in lines
    assert lines[-1].startswith("code of the step changed (aaaaaaaaaaaa -> bbbbbbbbbbbb")
    assert describe_difference(IDENTITY, IDENTITY) == []


def test_dotted_keys() -> None:
    values = {"model": {"path": None}}
    put_key(values, "model.path", "x")
    put_key(values, "data.files.train", 1)
    assert values == {"model": {"path": "x"}, "data": {"files": {"train": 1}}}
    assert get_key(values, "data.files.train") == 1
    assert get_key(values, "model.path.deeper") is None


def test_the_profile_does_not_enter_the_fingerprint(mill: Any) -> None:
    from nemotron_style.runtime.planning.planner import compile_pipeline
    from nemotron_style.runtime.planning.request import RunRequest

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


def test_the_code_enters_the_identity(mill: Any) -> None:
    before = mill.compile("mill/grow").target.plan
    mill.write("code/milling/extra.py", "SPEED = 1\n")
    after = mill.compile("mill/grow").target.plan
    assert isinstance(after, Plan)
    assert after.identity["code"] != before.identity["code"]
    assert after.run_id != before.run_id
