"""What the script for NeMo-Gym asks: each rule is broken alone."""

import pytest

from nemo_rl_rules import VLLM, Case, check_case, uncovered
from nemotron_style.steps.rl.rlhf.nemo_rl.rules import gym_script

ASYNC = {
    "grpo.async_grpo.enabled": True,
    "policy.generation.colocated.enabled": False,
    "policy.generation.colocated.resources.gpus_per_node": 2,
}
CASES = [
    Case(
        "gym_script.gym_is_used",
        {"env.should_use_nemo_gym": False, "checkpointing.metric_name": "val:accuracy"},
        "env.should_use_nemo_gym",
        ("got false", "allowed: true"),
        also=frozenset({"cluster.gpus_are_used"}),
    ),
    Case("gym_script.engine_settings", {VLLM: {}}, VLLM, ("is missing",)),
    Case(
        "gym_script.async_server",
        {f"{VLLM}.async_engine": False},
        f"{VLLM}.async_engine",
        ("made true",),
    ),
    Case(
        "gym_script.all_validation_rows",
        {"grpo.max_val_samples": 256},
        "grpo.max_val_samples",
        ("got 256", "allowed: null"),
    ),
    Case(
        "gym_script.validation_data",
        {"data.validation": None},
        "data.validation",
        ("val_period 10", "data.validation.data_path"),
    ),
    Case(
        "gym_script.no_top_k",
        {"policy.generation.top_k": 20},
        "policy.generation.top_k",
        ("got 20", "allowed: null"),
    ),
    Case(
        "gym_script.no_stop",
        {"policy.generation.stop_strings": ["###"]},
        "policy.generation.stop_strings",
        ("###", "allowed: null"),
    ),
    Case(
        "gym_script.penalties_need_gym",
        {"grpo.invalid_tool_call_advantage": -5.0},
        "grpo.invalid_tool_call_advantage",
        ("got -5.0", "should_use_nemo_gym=true"),
        gym=False,
    ),
    Case(
        "gym_script.penalties_need_gym",
        {"reward_penalties": {"penalize_empty_final_answer": True}},
        "reward_penalties.penalize_empty_final_answer",
        ("got true",),
        gym=False,
    ),
    Case(
        "gym_script.unwanted_tokens",
        {"reward_penalties": {"penalize_unwanted_tokens": True, "token_ids": None}},
        "reward_penalties.token_ids.unwanted",
        ("a list of ids",),
    ),
    Case(
        "gym_script.no_full_distillation",
        {"on_policy_distillation": {"full": {"teacher": "org/teacher"}}},
        "on_policy_distillation.full",
        ("not possible", "allowed: null"),
    ),
    Case(
        "gym_script.async_excludes",
        {**ASYNC, "grpo.reward_scaling.enabled": True},
        "grpo.reward_scaling.enabled",
        ("grpo.async_grpo.enabled", "allowed: false"),
    ),
    Case(
        "gym_script.async_excludes",
        {**ASYNC, "grpo.use_dynamic_sampling": True},
        "grpo.use_dynamic_sampling",
        ("got true",),
    ),
    Case(
        "gym_script.async_corrects",
        {
            **ASYNC,
            "loss_fn.use_importance_sampling_correction": False,
            "loss_fn.truncated_importance_sampling_type": None,
            "loss_fn.truncated_importance_sampling_ratio": None,
        },
        "loss_fn.use_importance_sampling_correction",
        ("got false", "allowed: true"),
    ),
    Case(
        "gym_script.async_apart",
        {"grpo.async_grpo.enabled": True},
        "policy.generation.colocated.enabled",
        ("got true", "colocated.resources"),
    ),
    Case(
        "gym_script.rollout_attempts",
        {"env.nemo_gym.rollout_max_attempts_to_avoid_lp_nan": 0},
        "env.nemo_gym.rollout_max_attempts_to_avoid_lp_nan",
        ("got 0", "1 or more"),
    ),
    Case(
        "gym_script.overlong_limit",
        {"grpo.overlong_filtering": True},
        "grpo.overlong_filtering",
        ("4096", "1024"),
    ),
    Case(
        "gym_script.early_stop",
        {"grpo.stop_at_validation_metric": "accuracy"},
        "grpo.stop_at_validation_threshold",
        ("got null",),
    ),
    Case(
        "gym_script.early_stop",
        {
            "grpo.stop_at_validation_metric": "pass_k",
            "grpo.stop_at_validation_threshold": 0.9,
            "grpo.val_num_generations_per_prompt": 1,
            "data.validation.repeat": 4,
        },
        "grpo.val_num_generations_per_prompt",
        ("got 1", "2 or more"),
    ),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.rule)
def test_the_rule_alone_is_broken_and_told(case: Case) -> None:
    check_case(case, gym_script)


def test_every_rule_has_a_case() -> None:
    assert not uncovered(CASES, gym_script)
