"""Keys and values that a version does not know are refused, each with what would be right."""

from __future__ import annotations

from typing import Any

import pytest

from nemotron_style.runtime.errors import Problem
from nemotron_style.runtime.validation import put_key
from nemotron_style.steps.rl.rlhf.nemo_rl.check import check_keys, find_missing
from nemotron_style.steps.rl.rlhf.nemo_rl.schema import COMPARE, GYM, JUDGE
from nemotron_style.steps.rl.rlhf.nemo_rl.version import Version


def check(version: str, /, **given: Any) -> list[Problem]:
    values: dict[str, Any] = {}
    for key, value in given.items():
        put_key(values, key, value)
    return list(check_keys(values, Version(version)))


def test_an_unknown_key_says_which_version_knows_it_or_what_is_near() -> None:
    (newer,) = check("v0.7.0", **{"grpo.val_start_at": 5})
    assert newer.what == "is not known to NeMo-RL v0.7.0"
    assert newer.fix == "leave it out, or use head or v0.8.0"
    (typo,) = check("head", **{"grpo.num_promts_per_step": 5})
    assert "'grpo.num_prompts_per_step'" in typo.fix


def test_a_dead_key_is_refused_with_the_reason() -> None:
    (problem,) = check("v0.7.0", **{"checkpointing.is_async": True})
    assert "decides nothing in NeMo-RL v0.7.0" in problem.what
    assert "async_save" in problem.what


@pytest.mark.parametrize(
    ("version", "key", "value", "allowed"),
    [
        ("v0.7.0", "grpo.seed", None, "a whole number"),
        ("v0.7.0", "checkpointing.save_period", 0, "a number >= 1"),
        ("v0.6.0", "grpo.adv_estimator.name", "opd", "grpo, gdpo, reinforce_plus_plus"),
        ("head", "policy.generation.top_p", 0, "a number > 0, <= 1"),
        ("head", f"{COMPARE}.use_principle", "yes", "true or false"),
        ("head", "policy.megatron_cfg.optimizer", 3, "a table of keys"),
    ],
)
def test_a_value_is_refused_with_what_is_allowed(
    version: str, key: str, value: Any, allowed: str
) -> None:
    (problem,) = check(version, **{key: value})
    assert (problem.key, problem.allowed) == (key, allowed)


def test_all_problems_come_at_once() -> None:
    given = {"grpo.seed": "x", "loss_fn.ratio_clip_c": 1, "policy.nonsense": 1}
    assert {each.key for each in check("head", **given)} == set(given)


def test_a_key_of_a_constructor_says_that_it_refuses_others() -> None:
    (problem,) = check("head", **{"policy.megatron_cfg.optimizer.learning_rate": 1.0})
    assert "whose constructor refuses it" in problem.what


def test_a_server_of_ones_own_needs_an_entrypoint() -> None:
    server = {"responses_api_agents": {"my_agent": {"entrypoint": "app.py"}}}
    assert check("head", **{f"{GYM}.mine": server}) == []
    assert check("head", **{f"{GYM}.mine": {"_copy": "policy_model"}}) == []
    (problem,) = check("head", **{f"{GYM}.genrm_modle": {"responses_api_models": {"a": {}}}})
    assert "NeMo-Gym would ignore it" in problem.what
    assert "genrm_model" in problem.fix


def test_settings_of_vllm_are_not_ours_to_know() -> None:
    assert check("head", **{f"{JUDGE}.vllm_serve_kwargs.attention_backend": "TRITON_ATTN"}) == []
    assert check("head", **{"policy.generation.vllm_kwargs": {"mamba_cache_mode": "align"}}) == []


def test_what_only_the_job_knows_fits_any_type() -> None:
    assert check("head", **{"policy.pretrained_checkpoint.format": "${oc.env:FORMAT}"}) == []


def test_a_needed_key_is_missed_where_its_table_is_there() -> None:
    assert "policy.megatron_cfg.optimizer.lr" in find_missing(
        {"policy": {"megatron_cfg": {"optimizer": {}}}}, Version.V0_7_0
    )
    assert find_missing({"policy": {}}, Version.V0_7_0).count("policy.optimizer.name") == 0
