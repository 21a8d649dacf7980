"""Which backend trains: each rule is broken alone."""

import pytest

from nemo_rl_rules import MEGATRON, Case, check_case, uncovered
from nemotron_style.steps.rl.rlhf.nemo_rl.rules import backends
from nemotron_style.steps.rl.rlhf.nemo_rl.version import Version


def automodel(version: Version, **settings: object) -> dict[str, object]:
    """Changes that let the other backend train, under the name of the version."""
    is_new = version >= Version.V0_8_0
    name = "automodel_cfg" if is_new else "dtensor_cfg"
    table = {"enabled": True, "tensor_parallel_size": 1, "context_parallel_size": 1}
    table |= {"checkpoint": {"model_save_format": "safetensors"}} if is_new else {"_v2": True}
    return {f"policy.{name}": table | settings, f"{MEGATRON}.enabled": False}


CASES = [
    Case(
        "backends.one_backend",
        {f"{MEGATRON}.enabled": False},
        f"{MEGATRON}.enabled",
        ("enabled false", "one true, one false"),
    ),
    Case(
        "backends.one_backend",
        lambda version: automodel(version) | {f"{MEGATRON}.enabled": True},
        f"{MEGATRON}.enabled",
        ("enabled true",),
    ),
    Case(
        "backends.artifact",
        automodel,
        "",
        ("checkpoint_nemo_rl", "policy.megatron_cfg.enabled=true"),
        facts={"publishes_megatron": True},
    ),
    Case(
        "backends.renamed_backend",
        lambda version: automodel(version) | {"policy.dtensor_cfg": {"enabled": False}},
        "policy.dtensor_cfg",
        ("policy.automodel_cfg", "v0.8.0"),
    ),
    Case(
        "backends.no_second_worker",
        lambda version: automodel(version, _v2=False),
        "policy.automodel_cfg._v2",
        ("got false",),
    ),
    Case(
        "backends.save_format",
        {
            "policy.dtensor_cfg": {"enabled": False},
            "checkpointing.model_save_format": "safetensors",
        },
        "checkpointing.model_save_format",
        ("got safetensors", "allowed: null", "policy.dtensor_cfg._v2=true"),
    ),
    Case(
        "backends.automodel_checkpoint",
        lambda version: automodel(version, checkpoint={}),
        "policy.automodel_cfg.checkpoint.model_save_format",
        ("safetensors or torch_save",),
    ),
    Case(
        "backends.automodel_checkpoint",
        lambda version: automodel(
            version, checkpoint={"model_save_format": "safetensors", "save_consolidated": True}
        ),
        "policy.automodel_cfg.checkpoint.save_consolidated",
        ("got true", '"final"'),
    ),
    Case(
        "backends.draft_backend",
        {"policy.draft.enabled": True},
        "policy.draft.enabled",
        ("policy.sequence_packing.enabled=false",),
    ),
    Case(
        "backends.draft_backend",
        lambda version: (
            automodel(version)
            | {"policy.draft.enabled": True, "policy.sequence_packing.enabled": False}
        ),
        "policy.draft.enabled",
        ("policy.megatron_cfg.enabled=true",),
    ),
    Case(
        "backends.reward_model_backend",
        {"policy.reward_model_cfg": {"enabled": True}},
        "policy.reward_model_cfg.enabled",
        ("got true",),
    ),
    Case(
        "backends.precision",
        {"policy.precision": "bf16"},
        "policy.precision",
        ("got bf16", "bfloat16, float16, float32"),
    ),
    Case(
        "backends.precision",
        {f"{MEGATRON}.pipeline_dtype": "half"},
        f"{MEGATRON}.pipeline_dtype",
        ("got half",),
    ),
    Case(
        "backends.automodel_context_parallel",
        lambda version: (
            automodel(
                version, tensor_parallel_size=2, context_parallel_size=2, sequence_parallel=True
            )
            | {"policy.sequence_packing.enabled": False}
        ),
        "",
        ("TP 2", "got 2", "sequence_parallel=false"),
    ),
    Case(
        "backends.pretrained_format",
        {"policy.pretrained_checkpoint": {"path": "/m/iter_0000000", "format": "nemo"}},
        "policy.pretrained_checkpoint.format",
        ("got nemo", "megatron_bridge or megatron_lm"),
    ),
    Case(
        "backends.pretrained_format",
        lambda version: (
            automodel(version)
            | {"checkpointing.pretrained_checkpoint": {"path": "/m", "format": "megatron_lm"}}
        ),
        "checkpointing.pretrained_checkpoint",
        ("Megatron backend only",),
    ),
    Case(
        "backends.pretrained_unread",
        {"policy.pretrained_checkpoint": {"path": "/m/iter_0000000", "format": "megatron_lm"}},
        "policy.pretrained_checkpoint",
        ("got org/policy", "v0.7.0"),
    ),
    Case(
        "backends.shared_conversion",
        {"cluster.num_nodes": 2},
        "cluster.num_nodes",
        ("2 nodes", "NRL_MEGATRON_CHECKPOINT_DIR"),
        facts={"nodes": 2},
        also=frozenset({"cluster.gpus_are_used"}),
    ),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.rule)
def test_the_rule_alone_is_broken_and_told(case: Case) -> None:
    check_case(case, backends)


def test_every_rule_has_a_case() -> None:
    assert not uncovered(CASES, backends)
