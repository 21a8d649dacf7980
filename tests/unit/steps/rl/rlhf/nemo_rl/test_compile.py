"""One complete NeMo-RL YAML from what was given, with a reason for every value that follows."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from nemo_rl_configs import PROMPTS, make_config
from nemotron_style.runtime.config.model import parse_config
from nemotron_style.runtime.launch.ray import WORKER_PORTS
from nemotron_style.runtime.step.compiled import JobSite
from nemotron_style.runtime.validation import get_key
from nemotron_style.steps.rl.rlhf.nemo_rl.check import check_keys, find_missing
from nemotron_style.steps.rl.rlhf.nemo_rl.compile import (
    RAY_WORKER_PORTS,
    Compiled,
    compile_job,
    compile_values,
)
from nemotron_style.steps.rl.rlhf.nemo_rl.config import Config
from nemotron_style.steps.rl.rlhf.nemo_rl.job_variables import CONFIG_FILE, JOB_FILE
from nemotron_style.steps.rl.rlhf.nemo_rl.schema import COMPARE, GYM, JUDGE
from nemotron_style.steps.rl.rlhf.nemo_rl.version import Version

SERVE = f"{JUDGE}.vllm_serve_kwargs"


def config(version: str | None = "v0.7.0", **given: Any) -> Config:
    return make_config(version, given)


def site(**more: Any) -> JobSite:
    return JobSite(**{"executor": "slurm", "gpus_per_node": 8, "inputs": PROMPTS, **more})


def compiled(version: str = "v0.7.0", at: JobSite | None = None, /, **given: Any) -> Compiled:
    return compile_values(config(version, **given), at or site())


def keys(values: Mapping[str, Any], above: str = "") -> set[str]:
    found = set()
    for name, value in values.items():
        found.add(above + name)
        if isinstance(value, Mapping):
            found |= keys(value, f"{above}{name}.")
    return found


@pytest.mark.parametrize("version", list(Version))
def test_what_is_compiled_is_complete_and_known(version: Version) -> None:
    for inputs in (PROMPTS, PROMPTS | {"model": "checkpoint_hf"}, {}):
        result = compiled(version, site(inputs=inputs))
        assert list(result.problems) == []
        assert find_missing(result.values, version) == []
        assert list(check_keys(result.values, version)) == []


@pytest.mark.parametrize("version", list(Version))
def test_the_yaml_holds_the_values_and_why_each_derived_one_is_so(version: Version) -> None:
    given = config(version)
    job, result = compile_job(given, site()), compile_values(given, site())
    assert yaml.safe_load(job.files[CONFIG_FILE]) == result.values
    about = json.loads(job.files[JOB_FILE])
    assert about["version"] == version
    assert about["stall_minutes"] >= 30
    for each in result.derived:
        assert each.why
        assert get_key(result.values, each.key) == each.value
        key = each.key.rpartition(".")[2]
        lines = [line for line in job.files[CONFIG_FILE].splitlines() if f"# {each.why}" in line]
        assert any(line.strip().startswith(f"{key}:") for line in lines)


def test_the_version_is_that_of_the_images_tag() -> None:
    job = compile_job(config(None), site(image="nvcr.io/nvidia/nemo-rl:v0.6.0"))
    assert job.files[CONFIG_FILE].startswith("# For NeMo-RL v0.6.0")
    for image in (None, "nemo-rl:latest", "nemo-rl:v0.5.0"):
        (problem,) = compile_job(config(None), site(image=image)).problems
        assert problem.key == "nemo_rl.version"
        assert "v0.6.0, v0.7.0, head, v0.8.0" in problem.fix


def test_the_judge_waits_for_the_group_in_training_and_validation() -> None:
    given = {"grpo.num_generations_per_prompt": 4, "grpo.num_prompts_per_step": 8}
    old, new = compiled("v0.7.0", **given).values, compiled("head", **given).values
    for values in (old, new):
        assert get_key(values, f"{COMPARE}.num_rollouts_per_prompt") == 4
        assert values["policy"]["train_global_batch_size"] == 32
    assert old["data"]["validation"]["repeat"] == 4
    assert "val_num_generations_per_prompt" not in old["grpo"]
    assert new["grpo"]["val_num_generations_per_prompt"] == 4
    assert "repeat" not in new["data"]["validation"]


def test_without_validation_data_nothing_is_validated_unless_training_data_may_serve() -> None:
    none = compiled("v0.7.0", site(inputs={})).values
    assert (none["grpo"]["val_period"], none["checkpointing"]["metric_name"]) == (0, None)
    assert "validation" not in none["data"]
    allowed = {"data.allow_train_as_validation": True}
    same = compiled("v0.7.0", site(inputs={}), **allowed).values["data"]
    assert same["validation"]["data_path"] == same["train"]["data_path"]
    assert "allow_train_as_validation" not in same


@pytest.mark.parametrize("version", list(Version))
def test_weights_of_hugging_face_start_the_policy_in_every_version(version: Version) -> None:
    policy = compiled(version, site(inputs=PROMPTS | {"model": "checkpoint_hf"})).values["policy"]
    variable = "${oc.env:NEMOTRON_STYLE_POLICY_MODEL}"
    assert policy["model_name"] == policy["tokenizer"]["name"] == variable
    assert "pretrained_checkpoint" not in policy


def test_a_checkpoint_of_nemo_rl_starts_no_run_before_v0_7_0() -> None:
    inputs = PROMPTS | {"model": "checkpoint_nemo_rl"}
    problems = compiled("v0.6.0", site(inputs=inputs)).problems
    assert any("starts from Hugging Face checkpoints alone" in one.what for one in problems)
    policy = compiled("v0.7.0", site(inputs=inputs)).values["policy"]
    assert policy["pretrained_checkpoint"]["path"] == "${oc.env:NEMOTRON_STYLE_PRETRAINED}"


@pytest.mark.parametrize("version", list(Version))
def test_a_path_that_a_slot_is_bound_to_is_left_to_the_job(version: Version) -> None:
    given = {"policy.pretrained_checkpoint.path": "a/checkpoint", "data.train.data_path": "a.jsonl"}
    result = compiled(version, site(inputs={}), **given, **{"data.validation.data_path": None})
    assert list(result.problems) == []
    text = json.dumps(result.values)
    assert "a/checkpoint" not in text
    assert "a.jsonl" not in text
    assert "${oc.env:NEMOTRON_STYLE_POLICY_MODEL}" in text


def test_a_metric_gets_its_prefix() -> None:
    values = compiled(**{"checkpointing.metric_name": "accuracy"}).values
    assert values["checkpointing"]["metric_name"] == "val:accuracy"


def test_text_of_the_user_is_no_interpolation() -> None:
    values = compiled(**{f"{COMPARE}.default_principle": "say ${HOME}"}).values
    assert get_key(values, f"{COMPARE}.default_principle") == "say \\${HOME}"


def test_ports_are_apart_from_those_of_the_launchers_ray() -> None:
    assert RAY_WORKER_PORTS == WORKER_PORTS
    given = {"policy.generation.port_range_low": 10500, "policy.generation.port_range_high": 12000}
    (problem,) = compiled("v0.7.0", **given).problems
    assert "10002-11000" in problem.got


def test_a_step_without_a_judge_or_a_policy_is_refused() -> None:
    empty = parse_config(Config, {"nemo_rl": {"version": "head"}}, where=lambda _: "")
    assert {each.key for each in compile_values(empty, site()).problems} == {
        "policy.model_name",
        f"{GYM}.genrm_model_name",
    }


def test_either_name_of_the_validation_groups_is_understood() -> None:
    for key in ("data.validation.repeat", "grpo.val_num_generations_per_prompt"):
        old, new = compiled("v0.7.0", **{key: 8}), compiled("head", **{key: 8})
        assert [*old.problems, *new.problems] == []
        assert old.values["data"]["validation"]["repeat"] == 8
        repeat = new.values["data"]["validation"].get("repeat", 1)
        assert repeat * new.values["grpo"]["val_num_generations_per_prompt"] == 8


def test_megatron_trains_whatever_else_was_asked_for() -> None:
    result = compiled(
        **{
            "policy.dtensor_cfg.enabled": True,
            "policy.megatron_cfg.enabled": False,
            "policy.optimizer": {
                "name": "AdamW",
                "kwargs": {"lr": 2e-6, "eps": "1e-8"},
            },
        }
    )
    policy = result.values["policy"]
    assert (policy["dtensor_cfg"]["enabled"], policy["megatron_cfg"]["enabled"]) == (False, True)
    rates = policy["megatron_cfg"]["optimizer"]
    assert (rates["lr"], rates["min_lr"], rates["adam_eps"]) == (2e-6, 2e-6, 1e-8)
    assert policy["optimizer"] is None
    why = {each.key: each.why for each in result.derived}["policy.megatron_cfg.enabled"]
    assert why.endswith("DTensor writes none; false was given")


def test_rules_see_the_whole_config_and_advise_on_it() -> None:
    result = compiled(**{"policy.train_global_batch_size": 32})
    same = compiled(**{f"{GYM}.genrm_model_name": "a/policy"})
    (problem,) = result.problems
    assert problem.key == "policy.train_global_batch_size"
    assert "16 * 8 = 128" in problem.allowed
    assert any("itself" in line for line in same.advice)


def test_an_external_judge_takes_no_gpus_and_v0_6_0_cannot_have_one() -> None:
    given = {f"{JUDGE}.base_url": ["http://judge:8000/v1"]}
    new, old = compiled("v0.7.0", **given), compiled("v0.6.0", **given)
    assert list(new.problems) == []
    assert (new.placement.policy_gpus, new.placement.judge_gpus) == (8, 0)
    (problem,) = old.problems
    assert problem.key == f"{JUDGE}.base_url"


def test_every_deadline_of_the_judge_follows_its_tokens() -> None:
    given = {f"{COMPARE}.genrm_responses_create_params.max_output_tokens": 16384}
    result = compiled("v0.8.0", **given)
    compare = get_key(result.values, COMPARE)
    assert compare["judge_request_timeout_s"] == 3277  # 4 tries of 16384 tokens at 20 a second
    assert compare["cohort_evaluation_timeout_s"] == 2 * compare["judge_request_timeout_s"]
    assert result.stall_minutes > compare["judge_request_timeout_s"] / 60
    assert get_key(result.values, f"{SERVE}.max_model_len") >= 4096 + 1024 + 16384


def test_a_logger_without_its_key_is_named_where_the_profile_gives_all_variables() -> None:
    enabled = {"logger.wandb_enabled": True, "logger.wandb": {"project": "p", "name": "n"}}
    for variables, keys in (
        (None, []),
        (frozenset({"WANDB_API_KEY"}), []),
        (frozenset({"HF_TOKEN"}), ["logger.wandb_enabled"]),
    ):
        found = compiled("v0.7.0", site(variables=variables), **enabled)
        assert [problem.key for problem in found.problems] == keys


def rows_of(folder: Path, *texts: str) -> Path:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in texts))
    return path


def test_rows_that_can_be_read_are_looked_at_before_anything_is_launched(tmp_path: Path) -> None:
    few = site(files={"prompts": rows_of(tmp_path, "how?", "why?")})
    (problem,) = compiled("v0.7.0", few, **{"grpo.num_prompts_per_step": 4}).problems
    assert "a step takes P 4 rows, and the rows are 2" in problem.what
    assert problem.where == str(tmp_path / "rows.jsonl")
    enough = compiled("v0.7.0", few, **{"grpo.num_prompts_per_step": 2})
    assert list(enough.problems) == []


def test_equal_prompts_are_refused_where_the_job_cannot_tell_them_apart(tmp_path: Path) -> None:
    given = {"grpo.num_prompts_per_step": 4}
    at = site(files={"prompts": rows_of(tmp_path, "how?", "why?", "how?", "who?")})
    found = [bool(compiled(version, at, **given).problems) for version in Version]
    assert found == [True, False, False, False]
