"""Without NeMo-Gym: a scalar reward model in its place, its GPUs, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from nemo_rl_configs import PROMPTS, WITHOUT_GYM, make_config
from nemotron_style.runtime.step.compiled import JobSite
from nemotron_style.runtime.validation import get_key
from nemotron_style.steps.rl.rlhf.nemo_rl.compile import Compiled, compile_job, compile_values
from nemotron_style.steps.rl.rlhf.nemo_rl.schema import JUDGE

SWITCH = "env.should_use_nemo_gym"
RESOURCES = "env.reward_model.resources"
VERSIONS = ("v0.6.0", "v0.7.0", "head")


def compiled(version: str = "v0.7.0", nodes: int = 1, /, **given: Any) -> Compiled:
    site = JobSite("slurm", nodes=nodes, gpus_per_node=8, inputs=PROMPTS)
    return compile_values(make_config(version, WITHOUT_GYM | given), site)


@pytest.mark.parametrize("version", VERSIONS)
def test_nothing_of_nemo_gym_is_left(version: str) -> None:
    result = compiled(version)
    values = result.values
    assert list(result.problems) == []
    assert set(values["env"]) == {"reward_model", SWITCH.partition(".")[2]}
    assert values["data"]["default"]["env_name"] == "reward_model"
    assert values["data"]["max_input_seq_length"] == 4096  # each prompt is compared with it
    assert values["policy"]["generation"]["vllm_cfg"]["async_engine"] is False
    assert values["env"]["reward_model"]["tokenizer"]["name"] == "a/scorer"
    assert any("env.nemo_gym is dropped" in line for line in result.told)


def test_another_script_runs() -> None:
    site = JobSite("slurm", gpus_per_node=8, inputs=PROMPTS)
    job = compile_job(make_config("head", WITHOUT_GYM), site)
    assert '"script": "examples/run_grpo.py"' in job.files["nemo_rl_job.json"]


@pytest.mark.parametrize("version", VERSIONS)
def test_validation_has_whole_batches_and_no_groups(version: str) -> None:
    values = compiled(version).values
    assert values["grpo"]["max_val_samples"] == values["grpo"]["val_batch_size"] == 256
    assert values["checkpointing"]["metric_name"] == "val:accuracy"
    assert "repeat" not in values["data"]["validation"]
    assert values["grpo"].get("val_num_generations_per_prompt", 1) == 1
    (problem,) = compiled(version, **{"grpo.max_val_samples": 100}).problems
    assert (problem.got, problem.allowed) == ("100", "at least grpo.val_batch_size=256")


def test_what_only_nemo_gym_forbids_stays_as_it_is_given() -> None:
    given = {"top_k": 50, "stop_strings": ["END"], "vllm_cfg.async_engine": True}
    result = compiled(**{f"policy.generation.{name}": value for name, value in given.items()})
    assert list(result.problems) == []
    generation = result.values["policy"]["generation"]
    assert (generation["top_k"], generation["stop_strings"]) == (50, ["END"])
    assert generation["vllm_cfg"]["async_engine"] is True


def test_without_anything_that_rewards_both_ways_out_are_named() -> None:
    (problem,) = compiled(**{"env.reward_model.model_name": None}).problems
    assert problem.key == SWITCH
    assert "env.reward_model.model_name" in problem.fix
    assert f"{SWITCH}=true" in problem.fix


def test_a_conversation_is_refused_before_anything_is_launched(tmp_path: Path) -> None:
    turns = [{"role": role, "content": "a"} for role in ("user", "assistant", "user")]
    rows = tmp_path / "rows.jsonl"
    rows.write_text(
        "\n".join([json.dumps({"prompt": "why?"})] * 16 + [json.dumps({"prompt": turns})])
    )
    site = JobSite("slurm", gpus_per_node=8, inputs=PROMPTS, files={"prompts": rows})
    (problem,) = compile_values(make_config("head", WITHOUT_GYM), site).problems
    assert (problem.where, problem.got) == (f"{rows}:17", "user, assistant, user")


def test_a_reward_model_beside_nemo_gym_is_refused() -> None:
    (problem,) = compiled(**{SWITCH: True}).problems
    assert (problem.key, "would not be asked" in problem.what) == ("env.reward_model", True)


def test_a_judge_elsewhere_and_a_version_that_was_not_seen_are_refused() -> None:
    (problem,) = compiled(**{f"{JUDGE}.base_url": ["http://judge:8000/v1"]}).problems
    assert problem.key == f"{JUDGE}.base_url"
    (problem,) = compiled("v0.8.0").problems
    assert "was not seen" in problem.what


@pytest.mark.parametrize(
    ("nodes", "given", "shown", "cluster"),
    [
        (1, {}, (1, 4, 1, 0), (5, 1)),
        (1, {"cluster.gpus_per_node": 3}, (1, 2, 1, 0), (3, 1)),
        (1, {f"{RESOURCES}.gpus_per_node": 4}, (1, 4, 4, 0), (8, 1)),
        (5, {"cluster.num_nodes": 5}, (4, 8, 1, 1), (8, 5)),
        (3, {}, (2, 8, 1, 1), (8, 3)),
    ],
)
def test_cluster_counts_the_gpus_of_policy_and_rewards(
    nodes: int, given: dict[str, Any], shown: tuple[int, ...], cluster: tuple[int, int]
) -> None:
    result = compiled("v0.7.0", nodes, **given)
    plan = result.placement
    assert list(result.problems) == []
    assert (plan.policy_nodes, plan.policy_gpus, plan.judge_gpus, plan.judge_nodes) == shown
    assert get_key(result.values, "cluster.gpus_per_node") == cluster[0]
    assert get_key(result.values, "cluster.num_nodes") == plan.nodes == cluster[1]
    assert any("reward model" in line for line in plan.lines())


@pytest.mark.parametrize(
    ("given", "key", "words"),
    [
        ({f"{RESOURCES}.gpus_per_node": 8}, RESOURCES, "1 x 8 GPUs of 1 x 8"),
        ({f"{RESOURCES}.gpus_per_node": 3}, RESOURCES, "for 128 answers"),
        (
            {f"{RESOURCES}.gpus_per_node": 2, "policy.generation.vllm_cfg.async_engine": True},
            RESOURCES,
            "one by one",
        ),
        ({"cluster.num_nodes": 4}, "cluster.gpus_per_node", "3 x 8 GPUs"),
    ],
)
def test_gpus_that_fit_nothing_are_told(given: dict[str, Any], key: str, words: str) -> None:
    problems = compiled("v0.7.0", 4, **({"cluster.num_nodes": 1} | given)).problems
    assert any(each.key == key and words in str(each.got) for each in problems)


def test_what_its_environment_asserts_is_checked_before() -> None:
    given = {"env.reward_model.dtensor_cfg.cpu_offload": True}
    (problem,) = compiled(**given).problems
    assert problem.key == "env.reward_model.dtensor_cfg.cpu_offload"
