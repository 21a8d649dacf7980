"""A step whose job a compiler writes, and a variant of a step that a key of the config chooses."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from nemotron_style.runtime.cli import main
from nemotron_style.runtime.errors import UsageError
from nemotron_style.runtime.planning.planner import compile_pipeline
from nemotron_style.runtime.planning.request import RunRequest
from nemotron_style.runtime.run.plan import parse_plan

COMPILER = """
from nemotron_style.runtime.errors import Problem
from nemotron_style.runtime.step.compiled import CompiledJob

def compile_job(config, site):
    seen.append(site)
    problems = [Problem(key="mill.speed", what="the water is too slow", got=str(config.mill.speed))]
    return CompiledJob(
        files={"wheel.yaml": f"speed: {config.mill.speed}\\nhands: {site.gpus_per_node}\\n"},
        notes=("speed: as the water flows",),
        resources={"nodes": 1, "gpus": 2},
        identity={"wheel": "old" if site.image == "mill:1" else "new"},
        problems=tuple(problems) if config.mill.speed > 5 else (),
    )

def other(config, site):
    return {}

seen = []
"""
SCHEMA = """
from typing import Literal

from milling.config import Config as Hand

class Config(Hand):
    backend: Literal["hand", "water"] = "hand"

class Water(Config):
    dam: int = 1
    image: str | None = None
"""
RECIPE = """
def run(config, ctx):
    (ctx.output("sack").path / "sack.txt").write_text(ctx.file("wheel.yaml"))
    (ctx.output("chaff").path / "chaff.txt").write_text("-")
    try:
        ctx.file("wheel.yml")
    except ValueError as error:
        ctx.say(str(error))
"""
VARIANT = """
variant_key = "backend"

[variants.water.run]
entrypoint = "milling.water:run"
config = "milling.schema:Water"
compiler = "milling.compiling:compile_job"
image_key = "image"
image = "mill:1"
launch = "ray"

[[variants.water.consumes]]
name = "river"
type = "grain"
also = ["stone"]
config_key = "mill.input_path"
"""


@pytest.fixture
def water(mill: Any) -> Any:
    """``mill/grist``: by hand it takes flour; by water a compiler writes the job, of a river."""
    mill.write("code/milling/compiling.py", COMPILER)
    mill.write("code/milling/schema.py", SCHEMA)
    mill.write("code/milling/water.py", RECIPE)
    configs = {
        "default": "backend: water\n",
        "hand": "defaults: default\nbackend: hand\ninputs: {input: {step: mill/grind}}\n",
        "river": "backend: water\ninputs: {river: {step: mill/grow}}\n",
    }
    mill.add_step("mill/grist", makes="bread", takes="flour", configs=configs, run=VARIANT)
    path = mill.root / "manifests/mill/grist/step.toml"
    path.write_text(path.read_text().replace("milling.config:Config", "milling.schema:Config"))
    return mill


def refusal(water: Any, *overrides: str, config: str = "river", **context: Any) -> str:
    with pytest.raises(UsageError) as caught:
        compile_pipeline(
            RunRequest("mill/grist", config, overrides=overrides), context=water.context(**context)
        )
    return str(caught.value)


def test_the_merged_config_chooses_the_variant_before_a_schema_sees_it(water: Any) -> None:
    by_hand = water.compile("mill/grist", config="hand").target
    by_water = water.compile("mill/grist", "dam=3", config="river").target
    assert by_hand.plan.entrypoint == "milling.recipe:run"
    assert [one.slot for one in by_hand.plan.inputs] == ["input"]
    assert by_water.plan.entrypoint == "milling.water:run"
    assert [one.slot for one in by_water.plan.inputs] == ["river"]
    assert by_water.plan.config["dam"] == 3
    assert [one.slot for one in by_water.plan.outputs] == ["sack", "chaff"]
    turned = water.compile("mill/grist", "backend=hand", "++backend=water", config="river").target
    assert turned.plan.entrypoint == "milling.water:run"


def test_an_override_chooses_too_and_a_key_of_the_other_variant_is_refused(water: Any) -> None:
    assert "dam" in refusal(water, "backend=hand", "dam=3")
    assert "got 'wind'; allowed: 'hand' or 'water'" in refusal(water, "backend=wind")
    assert "write it out" in refusal(water, "backend=${oc.env:BACKEND}")
    assert "has no such input" in refusal(water, "backend=hand")


def test_what_was_compiled_is_in_the_plan_and_the_job_reads_it(
    water: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["steps", "run", "mill/grist", "-c", "river", "mill.speed=2"]) == 0
    assert "no such file; did you mean 'wheel.yaml'?" in capsys.readouterr().out
    made = water.store.resolve("mill-grist-river")
    assert (made.path / "sack.txt").read_text() == "speed: 2\nhands: None\n"
    text = (water.home / "runs" / made.record.producer.run_id / "plan.json").read_text()
    assert parse_plan(text, where="plan.json").files == {"wheel.yaml": "speed: 2\nhands: None\n"}


def test_a_dry_run_shows_the_plan_and_then_what_is_wrong_with_it(
    water: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    before = water.files()
    words = ["steps", "run", "mill/grist", "-c", "river", "mill.speed=6", "--dry-run"]
    assert main(words) == 2
    shown = capsys.readouterr()
    assert "note      speed: as the water flows\n" in shown.out
    assert "the water is too slow; got 6" in shown.err
    assert main([*words, "--json"]) == 2
    document = json.loads(capsys.readouterr().out)
    assert document["dry_run"] is True
    assert document["error"]["problems"] == [
        {
            "where": "mill/grist",
            "key": "mill.speed",
            "what": "the water is too slow",
            "got": "6",
        }
    ]
    assert water.files() == before


def test_a_compiler_hears_what_came_from_outside_and_what_will_be_converted(water: Any) -> None:
    kinds = water.root / "manifests/kinds.toml"
    kinds.write_text(
        kinds.read_text()
        + '[ear]\ndescription = "uncut"\nsigns = ["ear.txt", "stalk/"]\n'
        + 'convert_to = { grain = "mill/thresh" }\n'
    )
    water.add_step("mill/thresh", takes="ear", makes="grain")
    field = water.write("field/ear.txt", "long\n").parent
    (field / "stalk").mkdir()
    sack = water.write("sack.txt", "full\n")
    import milling.compiling as compiler

    for path in (sack, field):
        water.compile("mill/grist", inputs=(f"river={path}",))
    ready, planned = compiler.seen
    assert (ready.files, ready.origins) == ({"river": sack}, {})
    assert (planned.files, planned.origins) == ({}, {"river": field})
    assert ready.outside == planned.outside == {"river"}


def test_a_dry_run_shows_notes_and_each_file_whole(
    water: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["steps", "run", "mill/grist", "-c", "river", "--dry-run"]
    assert main(words) == 0
    shown = capsys.readouterr().out
    assert "note      speed: as the water flows\n" in shown
    assert "file      wheel.yaml\n  speed: 1\n  hands: None\n" in shown
    assert main([*words, "--json"]) == 0
    run = json.loads(capsys.readouterr().out)["runs"][-1]
    assert run["plan"]["files"] == {"wheel.yaml": "speed: 1\nhands: None\n"}
    assert run["notes"] == ["speed: as the water flows"]


def test_a_compiler_is_told_the_site_and_its_resources_replace_the_manifest_s(water: Any) -> None:
    from milling import compiling  # type: ignore[import-not-found]  # of the test's project

    context = water.context(gpus_per_node=8, nodes=2, image="mill:2")
    plan = compile_pipeline(RunRequest("mill/grist", "river"), context=context).target.plan
    [site] = compiling.seen
    assert (site.executor, site.nodes, site.gpus_per_node) == ("local", 2, 8)
    assert (site.image, site.inputs) == ("mill:2", {"river": "grain"})
    assert (plan.nodes, plan.resources["gpus"], plan.site["gpus_per_node"]) == (1, 2, 2)
    assert "nodes: 1 (what was compiled) instead of the profile's 2" in plan.notes
    assert plan.image == "mill:2"
    assert "image: the profile's mill:2 instead of the step's mill:1" in plan.notes
    named = RunRequest("mill/grist", "river", overrides=("image=mill:3",))
    assert compile_pipeline(named, context=context).target.plan.image == "mill:3"


def test_a_compiler_knows_the_variables_of_a_job_where_a_profile_gives_them_all(water: Any) -> None:
    from milling import compiling

    elsewhere = {"executor": "slurm", "store": str(water.root / "store"), "partition": "batch"}
    given = {"env": {"FLOW": "1"}, "secrets": ("KEY",)}
    for changes in (elsewhere | given, given, elsewhere | given | {"setup": ("export HOME=/",)}):
        compiling.seen.clear()
        compile_pipeline(RunRequest("mill/grist", "river"), context=water.context(**changes))
        known = changes.get("executor") == "slurm" and "setup" not in changes
        assert compiling.seen[0].variables == (frozenset({"FLOW", "KEY"}) if known else None)


def test_a_compiler_may_read_what_exists_already(water: Any) -> None:
    from milling import compiling

    field = water.root / "field"
    field.mkdir()
    (field / "grain.txt").write_text("rye")
    request = RunRequest("mill/grist", "river", inputs=(f"river={field}",))
    compile_pipeline(request, context=water.context())
    compile_pipeline(RunRequest("mill/grist", "river"), context=water.context())
    given, of_another_step = compiling.seen
    assert given.files == {"river": field}
    assert of_another_step.files == {}


def test_what_of_the_site_changes_the_result_makes_another_run(water: Any) -> None:
    def plan(**profile: Any) -> str:
        return run_id(water, "mill/grist", "river", **profile)

    assert plan() == plan(gpus_per_node=8) == plan(image="mill:1")
    assert plan(image="mill:2") != plan()
    identity = water.compile("mill/grist", config="river").target.plan.identity
    assert identity["compiled"] == {"wheel": "old"}
    assert "compiled" not in water.compile("mill/grist", config="hand").target.plan.identity


def run_id(water: Any, step: str, config: str, **profile: Any) -> str:
    request = RunRequest(step, config)
    return compile_pipeline(request, context=water.context(**profile)).target.plan.run_id


def test_a_slot_takes_other_kinds_as_they_are_where_its_manifest_says_so(water: Any) -> None:
    from milling import compiling  # type: ignore[import-not-found]

    path = water.write("elsewhere/stone/sack.txt", "stone").parent
    water.store.adopt(path, kind="stone", name="pebbles")
    runs = water.compile("mill/grist", config="default", inputs=("river=pebbles",)).runs
    assert [(one.slot, one.kind) for one in runs[-1].plan.inputs] == [("river", "stone")]
    assert len(runs) == 1
    assert compiling.seen[-1].inputs == {"river": "stone"}


def test_problems_of_the_compiler_are_told_with_those_of_slots(water: Any) -> None:
    text = refusal(water, "mill.speed=7", config="default")
    assert "the water is too slow" in text
    assert "mill/grist: river: the input (grain) is required" in text
    [word] = ["milling.compiling:other"]
    path = water.root / "manifests/mill/grist/step.toml"
    path.write_text(path.read_text().replace("milling.compiling:compile_job", word))
    assert "returns no CompiledJob; got dict" in refusal(water)


def test_a_dry_run_shows_what_is_missing_and_a_run_is_refused(
    water: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["steps", "run", "mill/grist"]
    before = water.files()
    assert main([*words, "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert "run     mill/grist (default): river is missing; its content decides" in shown
    assert "note      provisional: " in shown
    assert "input     river: grain  MISSING, nothing fills it; give -i river=REF" in shown
    assert main([*words, "--dry-run", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["runs"][-1]["provisional"] is True
    assert main(words) == 2
    assert "give -i river=REF" in capsys.readouterr().err
    assert water.files() == before


def test_a_path_that_this_machine_cannot_read_makes_a_dry_run_provisional(
    water: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["steps", "run", "mill/grist", "mill.input_path=/lustre/river"]
    assert main([*words, "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert "input     river: grain  /lustre/river: no such file or directory; to submit, " in shown
    assert "  input_path: /lustre/river\n" in shown
    assert main(words) == 2
    assert "no such file or directory; give the command where" in capsys.readouterr().err


def test_a_run_that_waits_for_one_without_its_input_is_provisional_too(water: Any) -> None:
    water.add_step(
        "mill/feast",
        takes="bread",
        makes="stone",
        configs={"default": "inputs: {input: {step: mill/grist, slot: sack}}\n"},
    )
    context = replace(water.context(), provisional=True)
    runs = compile_pipeline(RunRequest("mill/feast"), context=context).runs
    assert [run.plan.step for run in runs] == ["mill/grist", "mill/feast"]
    assert [run.pending for run in runs] == ["river is missing"] * 2
    with pytest.raises(UsageError, match="mill/grist: river: the input"):
        compile_pipeline(RunRequest("mill/feast"), context=water.context())


def test_steps_show_tells_variants_and_which_config_chooses_which(
    water: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["steps", "show", "mill/grist"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert (
        "backend=water river (grain or stone) -> sack (bread), chaff (stone). Started by ray"
        in shown
    )
    assert "in the image mill:1" in shown
    assert "default backend: water hand backend: hand river backend: water" in shown
    assert main(["steps", "show", "mill/grist", "--json"]) == 0
    water_only = json.loads(capsys.readouterr().out)["variants"]["water"]
    assert water_only["run"]["compiler"] == "milling.compiling:compile_job"


def test_steps_are_found_by_the_kinds_of_their_variants_too(
    water: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["steps", "list", "--consumes", "stone", "--json"]) == 0
    assert [step["id"] for step in json.loads(capsys.readouterr().out)["steps"]] == ["mill/grist"]


def test_a_variant_without_its_key_is_no_manifest(
    water: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    path = water.root / "manifests/mill/grist/step.toml"
    path.write_text(path.read_text().replace('variant_key = "backend"', ""))
    assert main(["steps", "show", "mill/grist"]) == 2
    assert "variants are chosen by a key of the config" in capsys.readouterr().err
    path.write_text(path.read_text().replace('type = "grain"', 'type = "gravel"'))
    assert main(["steps", "show", "mill/grist"]) == 2


def test_an_unknown_kind_of_a_variant_is_told_where_it_stands(
    water: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    path = water.root / "manifests/mill/grist/step.toml"
    path.write_text(path.read_text().replace('type = "grain"', 'type = "gravel"'))
    assert main(["steps", "show", "mill/grist"]) == 2
    assert "variants.water.consumes[0].type: there is no kind" in capsys.readouterr().err
