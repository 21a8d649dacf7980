"""What fills the inputs: given, in the config, made upstream, or converted."""

from __future__ import annotations

from typing import Any

import pytest

from nemotron_style.runtime.errors import ConfigError, RefError, UsageError
from nemotron_style.runtime.planning.inputs import name_location
from nemotron_style.runtime.planning.planner import compile_pipeline
from nemotron_style.runtime.planning.request import RunRequest


def adopt(mill: Any, kind: str, name: str = "sack") -> Any:
    path = mill.write(f"elsewhere/{name}/sack.txt", f"{kind} {name}\n").parent
    return mill.store.adopt(path, kind=kind, name=name)


def steps_of(pipeline: Any) -> list[str]:
    return [run.plan.step for run in pipeline.runs]


def test_an_unknown_slot_names_the_near_one(mill: Any) -> None:
    with pytest.raises(UsageError, match=r"inptu: mill/bake has no such input.*'input'"):
        mill.compile("mill/bake", inputs=("inptu=x",))


def test_every_bad_option_is_told(mill: Any) -> None:
    with pytest.raises(UsageError) as caught:
        mill.compile("mill/bake", inputs=("input", "x=1", "input=a", "input=b"))
    assert len(caught.value.problems) == 3
    assert "given twice, as 'a' and as 'b'" in str(caught.value)


def test_a_ref_fills_the_slot_and_upstream_is_not_needed(mill: Any) -> None:
    artifact = adopt(mill, "flour")
    pipeline = mill.compile("mill/bake", inputs=("input=sack:v1",))
    assert steps_of(pipeline) == ["mill/bake"]
    (planned,) = pipeline.target.plan.inputs
    assert planned.source == artifact.digest
    assert pipeline.target.plan.config["mill"]["input_path"] == artifact.digest


def test_the_option_and_the_config_key_are_the_same_thing(mill: Any) -> None:
    adopt(mill, "flour")
    by_option = mill.compile("mill/bake", inputs=("input=sack",)).target.plan
    by_key = mill.compile("mill/bake", "mill.input_path=sack").target.plan
    both = mill.compile("mill/bake", "mill.input_path=sack", inputs=("input=sack",)).target.plan
    assert by_option == by_key == both
    with pytest.raises(UsageError, match=r"mill.input_path=other says otherwise"):
        mill.compile("mill/bake", "mill.input_path=other", inputs=("input=sack",))


def test_a_path_is_hashed_where_it_lies_and_adopted_later(mill: Any) -> None:
    path = mill.write("elsewhere/My Flour.d/sack.txt", "white\n").parent
    before = mill.files()
    pipeline = mill.compile("mill/bake", inputs=(f"input={path}",))
    assert mill.files() == before
    (adoption,) = pipeline.adoptions
    assert adoption.name == "my-flour"
    adopted = mill.store.adopt(path, kind=adoption.kind, name=adoption.name)
    again = mill.compile("mill/bake", inputs=(f"input={path}",))
    assert again.target.plan == pipeline.target.plan
    assert again.target.plan.inputs[0].source == adopted.digest
    assert again.adoptions == ()


@pytest.mark.parametrize("name", ["rows.jsonl", "Rows.JSONL", "rows", "sub.d"])
def test_a_bare_name_in_the_working_directory_is_the_file(mill: Any, name: str) -> None:
    path = mill.write(f"{name}/a.txt" if name == "sub.d" else name, "white\n")
    path = path.parent if name == "sub.d" else path
    bare = mill.compile("mill/bake", inputs=(f"input={name}",))
    assert bare.target.plan == mill.compile("mill/bake", inputs=(f"input={path}",)).target.plan
    by_key = mill.compile("mill/bake", f"mill.input_path={name}").target.plan
    assert by_key == bare.target.plan


def test_a_name_that_is_an_artifact_and_a_file_is_refused_and_each_can_be_meant(mill: Any) -> None:
    artifact = adopt(mill, "flour", "sack")
    mill.write("sack", "a file\n")
    with pytest.raises(UsageError, match=r"sack:v1.*write sack:latest for the artifact, ./sack"):
        mill.compile("mill/bake", inputs=("input=sack",))
    for ref in ("sack:latest", "sack:v1", artifact.digest):
        mill.write(ref, "a file with a name that nobody means\n")
        plan = mill.compile("mill/bake", inputs=(f"input={ref}",)).target.plan
        assert plan.inputs[0].source == artifact.digest
    assert mill.compile("mill/bake", inputs=("input=./sack",)).adoptions[0].name == "sack"


def test_what_is_not_there_is_told_with_its_slot(mill: Any) -> None:
    with pytest.raises(UsageError, match=r"mill/bake: input: no such artifact.*'nowhere'"):
        mill.compile("mill/bake", inputs=("input=nowhere",))
    with pytest.raises(UsageError, match=r"no such file"):
        mill.compile("mill/bake", inputs=("input=./nowhere",))


def test_a_name_with_a_slip_is_answered_with_the_file_that_is_meant(mill: Any) -> None:
    mill.write("train.jsonl", "white\n")
    with pytest.raises(UsageError, match=r"neither an artifact nor a file.*mean 'train.jsonl'"):
        mill.compile("mill/bake", inputs=("input=trian.jsonl",))
    with pytest.raises(
        UsageError, match=r"neither an artifact nor a file of this name; got 'Sack'"
    ):
        mill.compile("mill/bake", inputs=("input=Sack",))


def test_the_name_of_something_on_a_hub_says_how_it_is_fetched(mill: Any) -> None:
    with pytest.raises(UsageError, match=r"hf download miller/flour .*--local-dir FOLDER"):
        mill.compile("mill/bake", inputs=("input=miller/flour",))
    mill.write("miller/other.txt", "white\n")
    with pytest.raises(UsageError, match=r"no such file or directory; give the command where"):
        mill.compile("mill/bake", inputs=("input=miller/flour",))


def test_a_missing_input_says_how_to_give_it(mill: Any) -> None:
    with pytest.raises(UsageError, match=r"-i input=REF or mill.input_path=PATH; made by"):
        mill.compile("mill/bake", config="bare")


def test_a_kind_is_accepted_with_all_that_it_is(mill: Any) -> None:
    adopt(mill, "rye_flour")
    pipeline = mill.compile("mill/bake", inputs=("input=sack",))
    assert pipeline.target.plan.inputs[0].kind == "rye_flour"


def test_a_wrong_kind_names_both(mill: Any) -> None:
    adopt(mill, "stone")
    with pytest.raises(
        UsageError,
        match=r"input: wants flour, and sack:v1 is stone; usable are flour, rye_flour, grain$",
    ):
        mill.compile("mill/bake", inputs=("input=sack",))


def test_a_conversion_is_put_in_between(mill: Any) -> None:
    artifact = adopt(mill, "grain")
    pipeline = mill.compile("mill/bake", inputs=("input=sack",))
    assert steps_of(pipeline) == ["mill/grind", "mill/bake"]
    grind = pipeline.runs[0].plan
    assert grind.inputs[0].source == artifact.digest
    assert pipeline.target.plan.inputs[0].source == f"run:{grind.run_id}/sack"


def test_a_conversion_that_is_not_installed_is_named(mill: Any) -> None:
    adopt(mill, "grain")
    (mill.root / "manifests/mill/grind/step.toml").unlink()
    with pytest.raises(UsageError, match=r"wants flour.*is grain.*'mill/grind' would convert it"):
        mill.compile("mill/bake", inputs=("input=sack",))


def test_upstream_comes_first_and_the_same_run_only_once(mill: Any) -> None:
    source = "inputs:\n  input: {step: mill/grow, slot: sack, overrides: {mill: {speed: 2}}}\n"
    mill.write("manifests/mill/grind/fast.yaml", source)
    pipeline = mill.compile("mill/bake")
    assert steps_of(pipeline) == ["mill/grow", "mill/grind", "mill/bake"]
    fast = mill.compile("mill/grind", config="fast")
    assert fast.runs[0].plan.config["mill"]["speed"] == 2
    assert fast.runs[0].plan.run_id != pipeline.runs[0].plan.run_id


def test_upstream_can_be_overridden_from_below(mill: Any) -> None:
    pipeline = mill.compile("mill/bake", "+inputs.input.overrides.steps=9")
    assert pipeline.runs[1].plan.config["steps"] == 9


def test_a_circle_is_named(mill: Any) -> None:
    source = "inputs:\n  input: {step: mill/grind, config: round, slot: sack}\n"
    mill.add_step("mill/rot", takes="flour", makes="grain", configs={"default": source})
    back = "inputs:\n  input: {step: mill/rot, slot: sack}\n"
    mill.write("manifests/mill/grind/round.yaml", back)
    chain = r"mill/grind \(round\) -> mill/rot \(default\) -> mill/grind \(round\)"
    with pytest.raises(UsageError, match=chain):
        mill.compile("mill/grind", config="round")


def test_no_upstream_refuses_what_would_have_to_run(mill: Any) -> None:
    context = mill.context(upstream=False)
    with pytest.raises(UsageError, match=r"mill/bake needs it, and --no-upstream forbids"):
        compile_pipeline(RunRequest("mill/bake"), context=context)


def test_the_output_meant_must_be_clear(mill: Any) -> None:
    base = "inputs:\n  input: {step: mill/grow%s}\n"
    mill.write("manifests/mill/grind/plain.yaml", base % "")
    assert steps_of(mill.compile("mill/grind", config="plain")) == ["mill/grow", "mill/grind"]
    mill.write("manifests/mill/grind/typo.yaml", base % ", slot: sakc")
    with pytest.raises(UsageError, match=r"has no output 'sakc'.*did you mean 'sack'"):
        mill.compile("mill/grind", config="typo")
    mill.write("manifests/mill/bake/odd.yaml", "inputs:\n  input: {step: mill/bake}\n")
    with pytest.raises(UsageError, match=r"mill/bake makes no output that fits flour"):
        mill.compile("mill/bake", config="odd")


def test_names_and_arguments_are_checked_first(mill: Any) -> None:
    with pytest.raises(RefError, match=r"cannot be used"):
        mill.compile("mill/grow", name="../up")
    with pytest.raises(UsageError, match=r"takes no arguments after --"):
        mill.compile("mill/grow", arguments=("--fast",))
    plain, with_arguments = mill.compile("mill/bake"), mill.compile("mill/bake", arguments=("x",))
    assert plain.target.plan.run_id != with_arguments.target.plan.run_id


def test_process_counts_come_from_the_config(mill: Any) -> None:
    run = 'launch = "torchrun"\n[run.resources]\nprocesses = ["devices", 2]\ngpus = 1'
    mill.add_step("mill/wide", makes="grain", run=run)
    plan = mill.compile("mill/wide", "devices=3").target.plan
    assert plan.resources == {"gpus": 1, "nodes": 1, "processes": 6}
    assert plan.processes == 6
    with pytest.raises(ConfigError, match=r"devices: the manifest counts processes"):
        mill.compile("mill/wide", "devices=0")


@pytest.mark.parametrize(
    ("gpus", "taken", "source"),
    [("0", 0, "the manifest"), ('"devices"', 3, "devices"), ("9", 8, None)],
)
def test_a_step_takes_no_more_gpus_of_a_profile_than_it_says(
    mill: Any, gpus: str, taken: int, source: str | None
) -> None:
    mill.add_step("mill/wide", makes="grain", run=f"[run.resources]\ngpus = {gpus}")
    request = RunRequest("mill/wide", overrides=("devices=3",))
    plan = compile_pipeline(request, context=mill.context(gpus_per_node=8)).target.plan
    assert plan.site["gpus_per_node"] == taken
    told = f"gpus_per_node: {taken} ({source} of the step) instead of the profile's 8"
    assert plan.notes == ((told,) if source else ())


@pytest.mark.parametrize(
    ("location", "name"),
    [
        ("./a/B c.jsonl", "b-c"),
        ("s3://x/data/", "data"),
        ("/", "adopted"),
        ("x/.hidden", "adopted"),
    ],
)
def test_adopted_content_is_named_after_its_last_part(location: str, name: str) -> None:
    assert name_location(location) == name
