"""A step of a tree as a plan: marks for paths, what is covered, and what is missing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from nemotron_style.runtime.catalog.catalog import load_catalog
from nemotron_style.runtime.catalog.tree import VARIABLE
from nemotron_style.runtime.errors import UsageError
from nemotron_style.runtime.planning.planner import compile_pipeline
from nemotron_style.runtime.planning.request import PlanContext, RunRequest
from nemotron_style.runtime.planning.tree_step import JOB, check_job
from nemotron_style.runtime.profiles.model import Profile
from nemotron_style.runtime.run.plan import Plan
from nemotron_style.runtime.store.store import Store
from step_tree import HEAD, TOML, write_step, write_tree


class Bench:
    """A tree, a text to count, and an empty store."""

    def __init__(self, folder: Path) -> None:
        self.root, self.folder = write_tree(folder / "tree"), folder
        (folder / "text").mkdir()
        (folder / "text" / "lines.txt").write_text("a b a\n")

    def plan(self, *overrides: str, profile: Profile | None = None, **request: Any) -> Plan:
        request = {"step": "words/count", "inputs": ("text_lines=./text",), **request}
        context = PlanContext(
            load_catalog(), Store(self.folder / "store"), profile or Profile(name="p"), self.folder
        )
        return compile_pipeline(
            RunRequest(overrides=overrides, **request), context=context
        ).target.plan

    def rewrite(self, name: str, old: str, new: str) -> None:
        path = self.root / "words/count" / name
        assert old in path.read_text()
        path.write_text(path.read_text().replace(old, new))


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(VARIABLE, f"acme={tmp_path / 'tree'}")
    return Bench(tmp_path)


def test_paths_are_marks_until_the_job_knows_them(bench) -> None:
    plan = bench.plan()
    assert plan.config["result"]["file"] == "{output:word_counts}/counts.json"
    assert plan.identity["config"]["result"]["file"] == "{output:word_counts}/counts.json"
    job = json.loads(plan.files[JOB])
    assert job["folder"] == str(bench.root / "words/count")
    assert set(job["files"]) == {"step.py", "step.toml", "config/default.yaml", "config/tiny.yaml"}
    assert [slot["keys"] for slot in job["slots"]] == [["source"], ["result.folder"]]
    assert job["env"] == {"MOOD": "calm"}
    assert "run" not in plan.config
    assert [output.kind for output in plan.outputs] == ["word_counts"]


def test_a_path_in_the_config_is_an_input_like_any_other(bench) -> None:
    plan = bench.plan("source=./text", inputs=())
    assert plan.fingerprint == bench.plan().fingerprint
    assert plan.inputs[0].kind == "text_lines"


def test_a_config_of_ones_own_may_say_where_an_input_comes_from(bench) -> None:
    own = bench.folder / "own.yaml"
    own.write_text("defaults: default.yaml\ninputs:\n  text_lines: {ref: ./text}\n")
    plan = bench.plan(config="./own.yaml", inputs=())
    assert plan.inputs == bench.plan().inputs
    own.write_text("defaults: default.yaml\ninputs:\n  text_lines: {step: acme/words/list}\n")
    write_step(bench.root, "words/list", toml=TOML.replace("word_counts", "text_lines"))
    with pytest.raises(UsageError, match="acme/words/list: text_lines: the input"):
        bench.plan(config="./own.yaml", inputs=())


def test_one_path_may_go_to_several_keys(bench) -> None:
    bench.rewrite("step.toml", 'file = "lines.txt"', 'file = "lines.txt"\ncopies = ["note"]')
    assert bench.plan().config["note"] == "{input:text_lines}/lines.txt"


def test_what_is_no_path_here_stays_as_it_is_and_is_told(bench) -> None:
    plan = bench.plan("source=acme/texts", inputs=())
    assert plan.config["source"] == "acme/texts"
    assert plan.inputs == ()
    assert any("source='acme/texts' stays as it is and has no lineage" in n for n in plan.notes)


def test_keys_that_are_derived_from_an_input_follow_it(bench) -> None:
    bench.rewrite("config/default.yaml", "note: null", "note: ${source}.index")
    for plan in (bench.plan(), bench.plan("source=./text", inputs=())):
        assert plan.config["note"] == "{input:text_lines}/lines.txt.index"


def test_what_can_change_the_result_is_in_the_identity(bench) -> None:
    before = bench.plan().fingerprint
    assert bench.plan(profile=Profile(name="q", env={"MOOD": "wild"})).fingerprint == before
    assert bench.plan("least=3").fingerprint != before
    assert bench.plan("run.env.env_vars.MOOD=wild").fingerprint != before
    bench.rewrite("step.py", "counted", "wrote")
    assert bench.plan().fingerprint != before


def test_strict_where_nvidias_runner_merges_anything(bench) -> None:
    with pytest.raises(UsageError, match="laest: is in no file of this config; did you mean"):
        bench.plan("laest=3")
    with pytest.raises(UsageError, match=r"result.folder: is where the output word_coun"):
        bench.plan("result.folder=/elsewhere")
    with pytest.raises(UsageError, match="looks an artifact up in NVIDIA's registry; give -i"):
        bench.plan("++note=${art:model,path}")
    with pytest.raises(UsageError, match=r"text_lines: the input .* is required and nothing fills"):
        bench.plan(inputs=())


def test_a_slot_without_a_key_is_told_and_nothing_is_guessed(bench) -> None:
    bench.rewrite("step.toml", 'config_key = "result.folder"\n', "")
    with pytest.raises(UsageError, match="nothing says which key of the config holds the folder"):
        bench.plan()
    bench.rewrite("step.toml", "word_counts", 'word_counts"\nconfig_key = "other')
    with pytest.raises(UsageError, match="other: is bound to the output word_counts, and this"):
        bench.plan()


def test_an_input_without_a_key_cannot_be_given(bench) -> None:
    bench.rewrite("step.toml", 'config_key = "source"\n', "")
    with pytest.raises(UsageError, match="nothing says which key of the config holds its path"):
        bench.plan("source=x")
    notes = bench.plan("source=x", inputs=()).notes
    assert any("text_lines: no key takes it" in note for note in notes)


def test_resources_are_the_configs_then_the_profiles_then_the_runspecs(bench) -> None:
    script = HEAD.replace('"python"', '"torchrun"').replace("node = 0", "node = 4")
    write_step(bench.root, "words/many", script=script)
    profile = Profile(name="p", executor="slurm", gpus_per_node=2, nodes=3)
    plan = bench.plan(step="words/many")
    assert (plan.nodes, plan.processes, plan.launch) == (1, 4, "torchrun")
    plan = bench.plan(step="words/many", profile=profile)
    assert (plan.nodes, plan.processes) == (3, 2)
    plan = bench.plan(
        "+run.env.nodes=2", "+run.env.nproc_per_node=1", step="words/many", profile=profile
    )
    assert (plan.nodes, plan.processes) == (2, 1)
    with pytest.raises(UsageError, match="number of nodes must be a whole number; got 'many'"):
        bench.plan("+run.env.nodes=many", step="words/many", profile=profile)
    with pytest.raises(UsageError, match=r"run\.env\.env_vars: must be a table"):
        bench.plan("++run.env.env_vars=3", step="words/many", profile=profile)


def test_a_command_of_its_own_starts_its_ranks_itself(bench) -> None:
    script = HEAD.replace('"python"', '"torchrun"\n# cmd = "torchrun {script} {config}"')
    write_step(bench.root, "words/many", script=script.replace("node = 0", "node = 4"))
    plan = bench.plan(step="words/many")
    assert (plan.launch, plan.processes, plan.resources["gpus"]) == ("python", 1, 4)


def test_a_list_of_defaults_may_end_with_the_file_itself(bench) -> None:
    bench.rewrite("config/tiny.yaml", "default.yaml", "[default.yaml, _self_]")
    assert bench.plan(config="tiny").config["least"] == 2
    bench.rewrite("config/tiny.yaml", "[default.yaml, _self_]", "[_self_, default.yaml]")
    with pytest.raises(UsageError, match="there is no file '_self_'"):
        bench.plan(config="tiny")


def test_the_image_of_the_config_comes_before_that_of_the_runspec(bench) -> None:
    bench.rewrite("step.py", "# schema", '# image = "words:1"\n# schema')
    profile = Profile(name="p", executor="slurm")
    assert bench.plan(profile=profile).image == "words:1"
    assert bench.plan("+run.env.container_image=words:2", profile=profile).image == "words:2"


def test_what_the_job_would_miss_is_noted_and_refused_at_submission(bench) -> None:
    bench.rewrite(
        "step.py", '"python"', '"python"\n# workdir = "/opt/words"\n# cmd = "uvx {config}"'
    )
    bench.rewrite(
        "config/default.yaml", "env:", "env:\n    mounts: ['${auto_mount:git+https://a@b,/opt/c}']"
    )
    plan = bench.plan()
    told = [str(problem) for problem in check_job(plan)]
    assert len(told) == 3
    for text in ("git+https://a@b at /opt/c", "the folder /opt/words", "the program uvx"):
        assert any(text in note for note in plan.notes)
        assert any(text in problem for problem in told)
    profile = Profile(
        name="p",
        executor="slurm",
        image="words:1",
        mounts=({"path": "/a", "mount_path": "/opt/c"},),
    )
    assert list(check_job(bench.plan(profile=profile))) == []


def test_a_tree_of_a_profile_is_read_too(bench, monkeypatch) -> None:
    monkeypatch.delenv(VARIABLE)
    assert "mine/words/count" in load_catalog(profile_steps=[f"mine={bench.root}"]).steps
