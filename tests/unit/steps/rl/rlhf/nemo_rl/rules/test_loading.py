"""Keys that are read without a default: each is left out alone."""

import pytest

from nemo_rl_rules import MEGATRON, REMOVED, Case, check_case, uncovered
from nemotron_style.steps.rl.rlhf.nemo_rl.rules import loading
from nemotron_style.steps.rl.rlhf.nemo_rl.version import Version

CASES = [
    *(
        Case("loading.always_read", {key: REMOVED}, key, ("without a default",))
        for key in (
            "policy.sequence_packing.enabled",
            "policy.dynamic_batching.enabled",
            "checkpointing.keep_top_k",
            "checkpointing.metric_name",
            "checkpointing.higher_is_better",
            "checkpointing.save_optimizer",
        )
    ),
    Case("loading.train_data", {"data.train": REMOVED}, "data.train"),
    Case(
        "loading.vllm_arguments",
        {"policy.generation.vllm_kwargs": REMOVED},
        "policy.generation.vllm_kwargs",
        ("write vllm_kwargs: {}",),
    ),
    Case(
        "loading.offloaded_optimizer",
        {"policy.offload_optimizer_for_logprob": REMOVED},
        "policy.offload_optimizer_for_logprob",
        ("write false",),
    ),
    Case(
        "loading.fusion",
        {f"{MEGATRON}.gradient_accumulation_fusion": REMOVED},
        f"{MEGATRON}.gradient_accumulation_fusion",
        ("write false",),
    ),
    Case(
        "loading.squared_relu",
        lambda version: (
            {f"{MEGATRON}.use_fused_weighted_squared_relu": REMOVED}
            if version >= Version.V0_7_0
            else {}
        ),
        f"{MEGATRON}.use_fused_weighted_squared_relu",
        ("write false",),
    ),
    *(
        Case("loading.experts", {f"{MEGATRON}.{name}": REMOVED}, f"{MEGATRON}.{name}")
        for name in (
            "moe_router_dtype",
            "moe_router_load_balancing_type",
            "moe_router_bias_update_rate",
            "moe_permute_fusion",
        )
    ),
    Case(
        "loading.filtering",
        {"grpo.overlong_filtering": REMOVED},
        "grpo.overlong_filtering",
        ("write false",),
    ),
    Case("loading.filtering", {"grpo.batch_multiplier": REMOVED}, "grpo.batch_multiplier"),
    Case(
        "loading.draft",
        {"policy.draft": REMOVED},
        "policy.draft.enabled",
        ("write false",),
        gym=False,
    ),
    Case(
        "loading.asynchronous",
        {"grpo.async_grpo": None},
        "grpo.async_grpo",
        ("got null", "async_grpo: {enabled: false}"),
    ),
    *(
        Case(
            "loading.validation_sampling",
            lambda version, key=f"policy.generation.val_{name}": (
                {key: REMOVED} if version >= Version.HEAD else {}
            ),
            f"policy.generation.val_{name}",
            (f"write {value}",),
        )
        for name, value in (("temperature", "1.0"), ("top_p", "1.0"), ("top_k", "null"))
    ),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.rule)
def test_the_rule_alone_is_broken_and_told(case: Case) -> None:
    check_case(case, loading)


def test_every_rule_has_a_case() -> None:
    assert not uncovered(CASES, loading)
