"""What must divide what: each rule is broken alone, and its message names both numbers."""

from dataclasses import replace

import pytest

from nemo_rl_rules import MEGATRON, Case, check_case, uncovered
from nemotron_style.steps.rl.rlhf.nemo_rl.rules import batches

UNPACKED = {"policy.sequence_packing.enabled": False}
CASES = [
    Case(
        "batches.on_policy_batch",
        {"loss_fn.force_on_policy_ratio": True, "policy.train_global_batch_size": 8},
        "policy.train_global_batch_size",
        ("got 8", "4 * 4 = 16"),
    ),
    Case(
        "batches.samples_fill_batches",
        {"policy.train_global_batch_size": 6},
        "policy.train_global_batch_size",
        ("got 6", "4 * 4 = 16"),
    ),
    Case(
        "batches.batch_fills_replicas",
        {"cluster.gpus_per_node": 6, f"{MEGATRON}.tensor_model_parallel_size": 2},
        "policy.train_global_batch_size",
        ("got 16", "DP 3", "6 GPUs / (PP 1 * CP 1 * TP 2 = 2)"),
        facts={"gpus_per_node": 10},
    ),
    Case(
        "batches.micro_batches_fill",
        {**UNPACKED, "policy.train_micro_batch_size": 3},
        "policy.train_micro_batch_size",
        ("got 3", "16 / DP 2 = 8"),
    ),
    Case(
        "batches.micro_batches_fill",
        {**UNPACKED, "policy.logprob_batch_size": 5},
        "policy.logprob_batch_size",
        ("got 5", "16 / DP 2 = 8"),
    ),
    Case(
        "batches.updates_of_a_step",
        {"policy.train_global_batch_size": 4},
        "policy.train_global_batch_size",
        ("4 updates", "16", "4"),
    ),
    Case(
        "batches.batch_multiplier",
        {"grpo.batch_multiplier": 2},
        "grpo.batch_multiplier",
        ("got 2", "allowed: 1"),
    ),
    Case(
        "batches.prompts_of_loaders",
        {"data.use_multiple_dataloader": True, "data.num_prompts_per_dataloader": 3},
        "data.num_prompts_per_dataloader",
        ("got 3", "4"),
        also=frozenset({"data_rows.rows_are_used"}),
    ),
    Case(
        "batches.gpus_fill_models",
        {f"{MEGATRON}.pipeline_model_parallel_size": 3},
        "cluster.gpus_per_node",
        ("got 4 GPUs", "PP 3 * CP 1 * TP 2 = 6"),
        also=frozenset({"batches.gpus_fill_experts"}),
    ),
    Case(
        "batches.gpus_fill_experts",
        {f"{MEGATRON}.expert_model_parallel_size": 3},
        f"{MEGATRON}.expert_model_parallel_size",
        ("got 4 GPUs", "ETP 1 * EP 3 * PP 1 = 3"),
    ),
    Case(
        "batches.packing_or_dynamic",
        {"policy.dynamic_batching.enabled": True},
        "policy.dynamic_batching.enabled",
        ("both true",),
    ),
    Case(
        "batches.dynamic_without_stages",
        {
            **UNPACKED,
            "policy.dynamic_batching.enabled": True,
            f"{MEGATRON}.pipeline_model_parallel_size": 2,
        },
        "policy.dynamic_batching.enabled",
        ("pipeline_model_parallel_size 2",),
    ),
    Case(
        "batches.equal_micro_batches",
        {
            f"{MEGATRON}.tensor_model_parallel_size": 4,
            "policy.make_sequence_length_divisible_by": 4,
            "policy.logprob_batch_size": 2,
        },
        "policy.logprob_batch_size",
        ("TP 4", "got 2", "allowed: 1", "NRL_IGNORE_TP_ACCURACY_CHECK"),
    ),
    Case(
        "batches.sequences_fit_bins",
        {"policy.sequence_packing.logprob_mb_tokens": 2048},
        "policy.sequence_packing.logprob_mb_tokens",
        ("4096", "got 2048"),
    ),
    Case(
        "batches.sequences_fit_bins",
        {"policy.make_sequence_length_divisible_by": 10},
        "policy.sequence_packing.train_mb_tokens",
        ("padded to 4100", "got 4096"),
    ),
    Case(
        "batches.padding_multiple",
        {f"{MEGATRON}.context_parallel_size": 2},
        "policy.make_sequence_length_divisible_by",
        ("got 2", "2 * CP 2 * TP 2 = 8"),
    ),
    Case(
        "batches.context_parallel_packs",
        {**UNPACKED, f"{MEGATRON}.context_parallel_size": 2},
        f"{MEGATRON}.context_parallel_size",
        ("needs sequence packing", "policy.sequence_packing.enabled=true"),
    ),
    Case(
        "batches.fused_logprobs",
        {
            **UNPACKED,
            "policy.generation.top_p": 0.9,
            "policy.generation.val_top_p": 0.9,
            f"{MEGATRON}.use_fused_linear_logprobs": True,
        },
        f"{MEGATRON}.use_fused_linear_logprobs",
        ("top_p 0.9",),
    ),
    Case(
        "batches.fused_logprobs",
        {f"{MEGATRON}.use_fused_linear_logprobs": True},
        f"{MEGATRON}.use_fused_linear_logprobs",
        ("sequence_packing",),
    ),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.rule)
def test_the_rule_alone_is_broken_and_told(case: Case) -> None:
    check_case(case, batches)


def test_every_rule_has_a_case() -> None:
    assert not uncovered(CASES, batches)


def test_the_accuracy_rule_yields_to_its_variable() -> None:
    case = next(case for case in CASES if case.rule == "batches.equal_micro_batches")
    known = replace(case, facts={"variables": frozenset({"NRL_IGNORE_TP_ACCURACY_CHECK"})})
    with pytest.raises(AssertionError, match="is not found"):
        check_case(known, batches)
