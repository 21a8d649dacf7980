"""How responses are sampled: each rule is broken alone."""

import pytest

from nemo_rl_rules import VLLM, Case, check_case, uncovered
from nemotron_style.steps.rl.rlhf.nemo_rl.rules import generation
from nemotron_style.steps.rl.rlhf.nemo_rl.version import Version

GENERATION = "policy.generation"
RESOURCES = f"{GENERATION}.colocated.resources"
APART = {f"{GENERATION}.colocated.enabled": False}


def top_p(version: Version, value: float) -> dict[str, object]:
    """Of training, and of validation where that has one."""
    keys = ["top_p"] + ["val_top_p"] * (version >= Version.HEAD)
    return {f"{GENERATION}.{key}": value for key in keys}


CASES = [
    Case(
        "generation.gpus_fill_engines",
        {f"{VLLM}.tensor_parallel_size": 3},
        f"{VLLM}.tensor_parallel_size",
        ("got 4 GPUs", "TP 3 * PP 1 = 3"),
    ),
    Case(
        "generation.stages_need_async",
        {f"{VLLM}.pipeline_parallel_size": 2, f"{VLLM}.async_engine": False},
        f"{VLLM}.pipeline_parallel_size",
        ("got 2", "async_engine=true"),
        gym=False,
    ),
    Case(
        "generation.engine_experts",
        {f"{VLLM}.expert_parallel_size": 4, f"{VLLM}.tensor_parallel_size": 2},
        f"{VLLM}.expert_parallel_size",
        ("got 4", "1 or TP 2"),
    ),
    Case(
        "generation.engine_experts",
        {
            f"{VLLM}.expert_parallel_size": 3,
            f"{VLLM}.tensor_parallel_size": 2,
            f"{VLLM}.async_engine": False,
        },
        f"{VLLM}.expert_parallel_size",
        ("got 3", "multiples of TP 2"),
        gym=False,
    ),
    Case(
        "generation.sampling_range",
        lambda version: top_p(version, 1.5),
        f"{GENERATION}.top_p",
        ("got 1.5", "above 0, up to 1"),
    ),
    Case(
        "generation.sampling_range",
        lambda version: (
            {f"{GENERATION}.top_k": 0}
            | ({f"{GENERATION}.val_top_k": 0} if version >= Version.HEAD else {})
        ),
        f"{GENERATION}.top_k",
        ("got 0", "null, -1"),
        gym=False,
    ),
    Case(
        "generation.fp8_corrects",
        {
            f"{VLLM}.precision": "fp8",
            "loss_fn.use_importance_sampling_correction": False,
            "loss_fn.truncated_importance_sampling_type": None,
            "loss_fn.truncated_importance_sampling_ratio": None,
        },
        f"{VLLM}.precision",
        ("fp8 with false", "use_importance_sampling_correction=true"),
    ),
    Case(
        "generation.fp8_cache",
        {f"{VLLM}.kv_cache_dtype": "fp8_e4m3"},
        f"{VLLM}.kv_cache_dtype",
        ("got fp8_e4m3", "precision=fp8", "no NeMo-Gym"),
    ),
    Case(
        "generation.split_one_node",
        {**APART, f"{RESOURCES}.gpus_per_node": 4},
        f"{RESOURCES}.gpus_per_node",
        ("4 GPUs - 4 = 0 for training", "1 to 3"),
    ),
    Case(
        "generation.split_one_node",
        {**APART, f"{RESOURCES}.gpus_per_node": 2, f"{RESOURCES}.num_nodes": 2},
        f"{RESOURCES}.num_nodes",
        ("got 2", "null or 1"),
    ),
    Case(
        "generation.split_nodes",
        {
            **APART,
            "cluster.num_nodes": 2,
            f"{RESOURCES}.num_nodes": 2,
            f"{RESOURCES}.gpus_per_node": 4,
        },
        f"{RESOURCES}.num_nodes",
        ("2 nodes - 2 = 0 for training", "1 to 1"),
        facts={"nodes": 2, "gpus_per_node": None, "knows_all_variables": False},
    ),
    Case(
        "generation.split_nodes",
        {**APART, "cluster.num_nodes": 2, f"{RESOURCES}.num_nodes": 1},
        f"{RESOURCES}.gpus_per_node",
        ("got null", "cluster.gpus_per_node = 4"),
        facts={"nodes": 2, "gpus_per_node": None, "knows_all_variables": False},
    ),
    Case(
        "generation.some_gpus",
        {"cluster.gpus_per_node": 0},
        "cluster.gpus_per_node",
        ("got 0", "1 or more"),
        facts={"gpus_per_node": None},
    ),
    Case(
        "generation.megatron_colocated",
        {**APART, f"{GENERATION}.backend": "megatron", f"{RESOURCES}.gpus_per_node": 2},
        f"{GENERATION}.colocated.enabled",
        ("v0.6.0", "got false"),
    ),
    Case(
        "generation.metrics_interval",
        {f"{VLLM}.vllm_metrics_logger_interval": 0},
        f"{VLLM}.vllm_metrics_logger_interval",
        ("got 0", "above 0"),
    ),
    Case(
        "generation.context_fits",
        {f"{VLLM}.max_model_len": 2048},
        f"{VLLM}.max_model_len",
        ("2048", "4096"),
    ),
    Case(
        "generation.validation_sampling",
        {f"{GENERATION}.val_temperature": 0.0},
        f"{GENERATION}.val_temperature",
        ("got 0.0", "allowed: 1.0"),
        gym=False,
    ),
    Case(
        "generation.validation_sampling",
        {f"{GENERATION}.val_top_k": 20},
        f"{GENERATION}.val_top_k",
        ("got 20", "allowed: null"),
    ),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.rule)
def test_the_rule_alone_is_broken_and_told(case: Case) -> None:
    check_case(case, generation)


def test_every_rule_has_a_case() -> None:
    assert not uncovered(CASES, generation)
