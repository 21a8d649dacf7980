"""Inputs that must have the same tokens: refused when planned, or by the worker before it works."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from nemotron_style.runtime.cli import main
from nemotron_style.runtime.errors import UsageError
from nemotron_style.runtime.run.listing import list_runs
from nemotron_style.runtime.run.token_contract import compare_tokens
from nemotron_style.runtime.store.record import Artifact, Producer

Capture = pytest.CaptureFixture[str]

# Its flour has the tokens that the speed says, as a record of a checkpoint says them.
GRIND = """
def run(config, ctx):
    speed = config.mill.speed
    (ctx.output("sack").path / "sack.txt").write_text("flour")
    (ctx.output("chaff").path / "chaff.txt").write_text("-")
    canary = {"text": "ab", "ids": [7, speed]}
    ctx.output("sack").note(tokenizer_digest=f"sha256:{speed}", canary=canary)
"""
MIX = """
[[consumes]]
name = "grain"
type = "grain"
same_tokens_as = "input"
required = false
"""


@pytest.fixture
def kitchen(mill: Any) -> Any:
    """A mill with mill/fine, whose flour says its tokens, and mill/mix, which joins two inputs."""
    mill.write("code/milling/fine.py", GRIND)
    mill.add_step("mill/fine", makes="flour")
    change(mill.root / "manifests/mill/fine/step.toml", "milling.recipe:run", "milling.fine:run")
    source = "inputs:\n  input: {step: mill/fine, slot: sack}\n"
    mill.add_step("mill/mix", takes="flour", makes="bread", configs={"default": source})
    manifest = mill.root / "manifests/mill/mix/step.toml"
    manifest.write_text(manifest.read_text() + MIX)
    return mill


def change(path: Path, old: str, new: str) -> None:
    path.write_text(path.read_text().replace(old, new))


def facts(digest: str, *ids: int, **more: Any) -> dict[str, Any]:
    return {"tokenizer_digest": f"sha256:{digest}", "canary": {"text": "ab", "ids": ids}, **more}


def make(mill: Any, name: str, kind: str, facts: dict[str, Any], *made_from: Artifact) -> Artifact:
    staged = mill.store.stage(name)
    (staged / "sack.txt").write_text(name)
    return mill.store.commit(
        staged,
        name=name,
        kind=kind,
        producer=Producer(run_id=f"run-{name}", step="mill/grow", slot="sack", config_name="tiny"),
        inputs=[one.edge("sampler") for one in made_from],
        facts=facts,
    )


def test_two_artifacts_that_differ_are_refused_with_both_digests(kitchen: Any) -> None:
    old = make(kitchen, "old", "flour", facts("1", 7, 8, 9))
    rows = make(kitchen, "rows", "grain", facts("1", 7, 8, 9), old)
    new = make(kitchen, "new", "flour", facts("2", 7, 5, 9))
    kitchen.compile("mill/mix", inputs=(f"input={old.ref}", f"grain={rows.ref}"))
    with pytest.raises(UsageError) as refused:
        kitchen.compile("mill/mix", inputs=(f"input={new.ref}", f"grain={rows.ref}"))
    assert str(refused.value) == (
        "mill/mix: grain: rows:v1 has other tokens than new:v1 (input input): tokenizer sha256:1 "
        "and sha256:2; token 2 of the canary is 8 and 5; make it with this tokenizer: "
        "nemotron-style steps run mill/grow -c tiny -i sampler=new:v1; "
        "or give what it was made with: -i input=old:v1"
    )


def test_where_one_has_no_contract_nothing_is_refused(kitchen: Any) -> None:
    flour = make(kitchen, "flour", "flour", facts("1", 7))
    text = make(kitchen, "text", "grain", {"rows": 3})
    kitchen.compile("mill/mix", inputs=(f"input={flour.ref}", f"grain={text.ref}"))
    kitchen.compile("mill/mix", inputs=(f"input={flour.ref}",))


def test_an_override_of_the_input_is_an_input_like_any(kitchen: Any) -> None:
    rows = make(kitchen, "rows", "grain", facts("1", 7))
    make(kitchen, "new", "flour", facts("2", 8))
    with pytest.raises(UsageError, match="rows:v1 has other tokens than new:v1"):
        kitchen.compile("mill/mix", "mill.input_path=new:v1", inputs=(f"grain={rows.ref}",))


def test_what_is_only_planned_is_checked_by_the_worker(kitchen: Any, capsys: Capture) -> None:
    rows = make(kitchen, "rows", "grain", facts("1", 7, 1))
    words = ("steps", "run", "mill/mix", "-i", f"grain={rows.ref}")
    source = kitchen.root / "manifests/mill/mix/default.yaml"
    change(source, "slot: sack", "slot: sack, overrides: {mill.speed: 4}")
    kitchen.compile("mill/mix", inputs=(f"grain={rows.ref}",))  # nothing is known yet
    assert main([*words]) == 2
    assert "token 2 of the canary is 1 and 4" in capsys.readouterr().err
    [run] = list_runs(kitchen.home, step="mill/mix")
    assert not (run.path / "metrics.jsonl").exists()  # the recipe writes it first of all
    # by now it is known, so the next command is refused before it starts anything
    assert main([*words, "--json"]) == 2
    [problem] = json.loads(capsys.readouterr().out)["error"]["problems"]
    assert (problem["where"], problem["key"]) == ("mill/mix", "grain")
    assert len(run.attempts) == 1


@pytest.mark.parametrize(
    ("left", "right", "told"),
    [
        (facts("1", 7), facts("1", 7), ""),
        ({}, facts("1", 7), ""),
        (facts("1", 7), facts("2", 7), "the canary has the same ids in both"),
        (facts("1", 7), facts("2", 7, 8), "token 2 of the canary is none and 8"),
        # the same tokenizer, read by another version of its library
        (facts("1", 7, 8), facts("1", 7, 9), "token 2 of the canary is 8 and 9"),
        # a template counts once both conversations are written by one
        (facts("1", 7, template_digest="a"), facts("1", 7, template_digest="b"), ""),
        (
            facts("1", 7, chat_format="chat_template", template_digest="a"),
            facts("1", 7, chat_format="chat_template", template_digest="b"),
            "chat template a and b",
        ),
        ({**facts("1"), "canary": "odd"}, facts("1", 7), ""),
    ],
)
def test_what_contradicts_and_what_does_not(left: Any, right: Any, told: str) -> None:
    left, right = json.loads(json.dumps([left, right]))
    assert told in compare_tokens(left, right)
    assert bool(compare_tokens(left, right)) == bool(told)


def test_a_manifest_names_another_input(kitchen: Any, capsys: Capture) -> None:
    change(kitchen.root / "manifests/mill/mix/step.toml", '"input"\nreq', '"model"\nreq')
    assert main(["steps", "show", "mill/mix"]) == 2
    told = capsys.readouterr().err
    assert "consumes.grain.same_tokens_as: is no other input of the step; got 'model'" in told
