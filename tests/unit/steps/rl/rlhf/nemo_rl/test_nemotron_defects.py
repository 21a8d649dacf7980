"""The defects of the step that NVIDIA Nemotron ships: each is mended and told, or named.

The input below is a small one of our own with the same defects.
"""

from __future__ import annotations

import copy
from typing import Any

import pytest

from nemotron_style.runtime.config.model import parse_config
from nemotron_style.runtime.step.compiled import JobSite
from nemotron_style.runtime.validation import get_key
from nemotron_style.steps.rl.rlhf.nemo_rl.compile import Compiled, compile_values
from nemotron_style.steps.rl.rlhf.nemo_rl.config import Config
from nemotron_style.steps.rl.rlhf.nemo_rl.schema import COMPARE, GYM, JUDGE
from nemotron_style.steps.rl.rlhf.nemo_rl.version import Version

DEFECTS: dict[str, Any] = {
    "grpo": {
        "num_prompts_per_step": 4,
        "num_generations_per_prompt": 8,
        "num_val_generations_per_prompt": 2,
        "use_best_at_k": False,
        "penalize_malformed_thinking": True,
        "advantage_clip_low": -50.0,
    },
    "loss_fn": {"force_on_policy_ratio": True},
    "policy": {
        "model_name": "org/policy",
        "train_global_batch_size": 8,
        "dtensor_cfg": {"enabled": True, "_v2": True},
        "megatron_cfg": {"enabled": False},
        "generation": {"vllm_cfg": {"async_engine": False}},
    },
    "data": {"validation": {"repeat": 8}},
    "env": {
        "use_genrm_compare": True,
        "nemo_gym": {
            "genrm_model_name": "org/judge",
            "genrm_compare": {
                "resources_servers": {"genrm_compare": {"num_rollouts_per_prompt": 8}}
            },
        },
    },
    "cluster": {"gpus_per_node": 8, "num_nodes": 1},
}


def compile_with(version: Version, **changes: Any) -> Compiled:
    values = {"nemo_rl": {"version": version}, **copy.deepcopy(DEFECTS)}
    judge = values["env"]["nemo_gym"].setdefault("genrm_model", {})
    judge["responses_api_models"] = changes.get("judge", {})
    inputs = {"prompts": "prompts_jsonl", "validation": "prompts_jsonl"}
    site = JobSite(executor="slurm", gpus_per_node=8, inputs=inputs)
    return compile_values(parse_config(Config, values, where=lambda _: "a.yaml"), site)


@pytest.mark.parametrize("version", Version)
def test_the_batch_that_breaks_an_assertion_is_named_with_both_numbers(version: Version) -> None:
    (problem,) = compile_with(version).problems
    assert problem.key == "policy.train_global_batch_size"
    assert problem.got == "8"
    assert "4 * 8 = 32" in problem.allowed


@pytest.mark.parametrize("version", Version)
def test_what_can_be_mended_is_mended_and_told(version: Version) -> None:
    found = compile_with(version)
    told = "\n".join(found.told)
    reasons = {each.key: each.why for each in found.derived}
    # The judge's settings reach the server that NeMo-Gym knows, so that its groups fill.
    assert get_key(found.values, f"{COMPARE}.num_rollouts_per_prompt") == 8
    assert f"{GYM}.genrm_compare is {GYM}.genrm_compare_resources_server" in told
    assert f"{GYM}.policy_model_reasoning_off" in _keys(found.values)
    # Validation prompts come as often as the judge waits for.
    groups = get_key(found.values, "data.validation.repeat")
    if version >= Version.HEAD:
        groups *= get_key(found.values, "grpo.val_num_generations_per_prompt")
    assert groups == 8
    # What is trained can be published, and the judge has GPUs.
    assert get_key(found.values, "policy.megatron_cfg.enabled") is True
    assert "Megatron checkpoint" in reasons["policy.megatron_cfg.enabled"]
    assert get_key(found.values, "cluster.gpus_per_node") < 8
    assert "8 was given" in reasons["cluster.gpus_per_node"]
    assert get_key(found.values, "policy.generation.vllm_cfg.async_engine") is True
    # Keys that no release reads are dropped in so many words.
    for key in ("use_best_at_k", "penalize_malformed_thinking", "num_val_generations_per_prompt"):
        assert f"grpo.{key}=" in told
    assert "env.use_genrm_compare=true is dropped" in told
    assert ("grpo.advantage_clip_low=-50.0 is dropped" in told) is (version == Version.V0_6_0)


@pytest.mark.parametrize("version", Version)
def test_the_documented_path_of_the_judge_is_its_real_one(version: Version) -> None:
    found = compile_with(version, judge={"vllm_model": {"model": "nvidia/Nemotron-Reward-Model"}})
    assert get_key(found.values, f"{JUDGE}.model") == "nvidia/Nemotron-Reward-Model"
    assert get_key(found.values, f"{GYM}.genrm_model_name") == "nvidia/Nemotron-Reward-Model"
    implementations = get_key(found.values, JUDGE.rpartition(".")[0])
    assert list(implementations) == ["genrm_model"]


def _keys(values: dict[str, Any], above: str = "") -> set[str]:
    found: set[str] = set()
    for name, value in values.items():
        found.add(f"{above}{name}")
        found |= _keys(value, f"{above}{name}.") if isinstance(value, dict) else set()
    return found
