"""Megatron's own settings: each rule is broken alone."""

import pytest

from nemo_rl_rules import MEGATRON, Case, check_case, uncovered
from nemotron_style.steps.rl.rlhf.nemo_rl.rules import megatron

OPTIMIZER = f"{MEGATRON}.optimizer"
ON_CPU = {f"{OPTIMIZER}.optimizer_cpu_offload": True}
CASES = [
    Case(
        "megatron.optimizer_precision",
        {f"{OPTIMIZER}.bf16": False},
        f"{OPTIMIZER}.bf16",
        ("bfloat16", "got false"),
    ),
    Case(
        "megatron.optimizer_precision",
        {"policy.precision": "float32"},
        f"{OPTIMIZER}.bf16",
        ("float32", "got true"),
    ),
    Case(
        "megatron.whole_offload",
        {**ON_CPU, f"{OPTIMIZER}.optimizer_offload_fraction": 0.5},
        f"{OPTIMIZER}.optimizer_offload_fraction",
        ("got 0.5", "allowed: 1.0"),
    ),
    Case(
        "megatron.offload",
        {**ON_CPU, f"{OPTIMIZER}.optimizer_offload_fraction": 0.0},
        f"{OPTIMIZER}.optimizer_offload_fraction",
        ("got 0.0", "above 0, up to 1"),
    ),
    Case(
        "megatron.offload",
        {
            **ON_CPU,
            f"{OPTIMIZER}.optimizer_offload_fraction": 1.0,
            f"{OPTIMIZER}.use_distributed_optimizer": False,
        },
        f"{OPTIMIZER}.use_distributed_optimizer",
        ("got false",),
    ),
    Case(
        "megatron.offload",
        {
            **ON_CPU,
            f"{OPTIMIZER}.optimizer_offload_fraction": 1.0,
            f"{OPTIMIZER}.optimizer": "lion",
        },
        f"{OPTIMIZER}.optimizer",
        ("got lion", "adam or sgd"),
    ),
    Case(
        "megatron.offload",
        {f"{OPTIMIZER}.overlap_cpu_optimizer_d2h_h2d": True},
        f"{OPTIMIZER}.overlap_cpu_optimizer_d2h_h2d",
        ("needs optimizer_cpu_offload",),
    ),
    Case(
        "megatron.auxiliary_loss",
        {
            f"{MEGATRON}.moe_router_load_balancing_type": "seq_aux_loss",
            f"{MEGATRON}.moe_aux_loss_coeff": 0.01,
        },
        f"{MEGATRON}.moe_aux_loss_coeff",
        ("seq_aux_loss", "got 0.01"),
    ),
    Case(
        "megatron.attention",
        {f"{MEGATRON}.attention_backend": "flash2"},
        f"{MEGATRON}.attention_backend",
        ("got flash2", "unfused"),
    ),
    Case(
        "megatron.recomputation",
        {f"{MEGATRON}.recompute_granularity": "some"},
        f"{MEGATRON}.recompute_granularity",
        ("got some", "full or selective"),
    ),
    Case(
        "megatron.recomputed_modules",
        {f"{MEGATRON}.recompute_modules": ["mlp"]},
        f"{MEGATRON}.recompute_modules",
        ("mlp with granularity full",),
    ),
    Case(
        "megatron.overrides",
        {f"{MEGATRON}.model_overrides": {"sequence_parallel": False}},
        f"{MEGATRON}.model_overrides.sequence_parallel",
        ("set policy.megatron_cfg.sequence_parallel",),
    ),
    Case(
        "megatron.chunked_logprobs",
        {"policy.logprob_chunk_size": 512, f"{MEGATRON}.defer_fp32_logits": False},
        "policy.logprob_chunk_size",
        ("512", "defer_fp32_logits=true"),
    ),
    Case(
        "megatron.warm_up",
        {f"{MEGATRON}.scheduler.lr_warmup_iters": 100},
        f"{MEGATRON}.scheduler.lr_warmup_iters",
        ("100", "99"),
    ),
    Case(
        "megatron.offloaded_modules",
        {f"{MEGATRON}.fine_grained_activation_offloading": True},
        f"{MEGATRON}.offload_modules",
        ("at least one name",),
    ),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.rule)
def test_the_rule_alone_is_broken_and_told(case: Case) -> None:
    check_case(case, megatron)


def test_every_rule_has_a_case() -> None:
    assert not uncovered(CASES, megatron)
