"""Every key of every step is read by code, or held to what happens anyway, or said to be unused.

Reads are found by name in the sources of the step and of the blocks: whoever uses
``config.trainer.devices`` writes ``.devices``.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pytest
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from nemotron_style.runtime.catalog.catalog import load_catalog
from nemotron_style.runtime.config.model import parse_config
from nemotron_style.runtime.config.resolve import load_config_class, resolve_config
from nemotron_style.runtime.errors import ConfigError
from nemotron_style.runtime.validation import union_members
from nemotron_style.steps.blocks.settings.fixed_value import only
from nemotron_style.steps.rl.rlhf.fixed_values import HELD_ELSEWHERE, Held

SOURCES = Path(__file__).parents[3] / "src" / "steps"
CATALOG = load_catalog()
STEPS = sorted(step for step in CATALOG.steps if (SOURCES / step).is_dir())

# Compiles for another loop, which has keys of the same names in a config of its own.
COMPILERS = {"nemo_rl"}
# Attributes of other things that have the name of an unused key.
OTHERS = {
    "reward/regression": {"name", "filename", "share_embeddings_and_output_weights"},
    "sft/chat": {"name", "filename", "micro_batch_size"},
    "rs/actor": {"name", "filename"},
    "rl/rlhf": {
        *("format", "default", "default_score", "use_distributed_optimizer"),
        # tables of any keys, of which one is looked at
        *("vllm_cfg", "distributed_data_parallel_config"),
    },
    "sft/steerlm2": {"name", "filename", "micro_batch_size"},
}
# Read with their whole table, and not by name.
BY_TABLE = {"data/toy": {"rated", "rated_heldout", "comparisons", "comparisons_heldout"}}
# Counted by the manifest, or seeds that every step has.
BY_RUNTIME = {"cluster.gpus_per_node", "seed"}

# Why a key that is read is no part of a run's identity: why no artifact and no record, from which
# a run would be reused, tells two of its values apart.
_PROCESSES = "the same sums in another order: rounding"
_PASS = "how much of a batch is computed at a time: the same sums in another order"
_RESUME = "when and how often the state is saved; a run continues exactly"
_MIRROR = "must equal another key, which is a part"
_SHOWN = "what people are shown of the model; no artifact and no record holds it"
_WAITING = "how long others are waited for; who is late has failed, and the record counts it"
_ACTIVATIONS = "what is kept for the backward pass, or computed again: the same gradients"
_TOLD = "who else is told about a run, and under which name"
COSMETIC = {
    **dict.fromkeys(("devices", "num_nodes", "processes", "gpus_per_node"), _PROCESSES),
    "tensor_model_parallel_size": _PROCESSES,
    "use_distributed_optimizer": _PROCESSES,
    "pipeline_model_parallel_size": _PROCESSES,
    **dict.fromkeys(("micro_batch_size", "forward_micro_batch_size"), _PASS),
    **dict.fromkeys(("train_micro_batch_size", "logprob_batch_size"), _PASS),
    **dict.fromkeys(("save_interval", "save_period", "save_top_k", "keep_top_k"), _RESUME),
    **dict.fromkeys(("seed", "precision", "bf16", "clip_grad", "seq_length"), _MIRROR),
    **dict.fromkeys(("start_weight_decay", "end_weight_decay", "global_batch_size"), _MIRROR),
    **dict.fromkeys(("max_epochs", "max_steps", "model_gbs", "model_mbs"), _MIRROR),
    **dict.fromkeys(("max_position_embeddings", "num_val_generations_per_prompt"), _MIRROR),
    **dict.fromkeys(("prompts", "max_new_tokens"), _SHOWN),
    "encoder_seq_length": _MIRROR,  # in reward/regression
    "num_rollouts_per_prompt": _MIRROR,  # the cohort of rl/rlhf; in rs/actor it is a part
    **dict.fromkeys(("ready_seconds", "timeout", "first_pause", "longest_pause"), _WAITING),
    "genrm_parse_retry_sleep_s": _WAITING,
    **dict.fromkeys(("sequence_parallel", "activation_checkpointing"), _ACTIVATIONS),
    "activations_checkpoint_granularity": _ACTIVATIONS,
    "activations_checkpoint_method": _ACTIVATIONS,
    "activations_checkpoint_num_layers": _ACTIVATIONS,
    "packed_sequence": "rows with or without padding: the same sums in another order",
    "tries": "rs/actor ends where they are used up: a failure is no score",
    "at_once": "requests under way; each has a seed of its own",
    **dict.fromkeys(("logger", "create_mlflow_logger", "create_wandb_logger"), _TOLD),
    **dict.fromkeys(("mlflow_enabled", "wandb_enabled", "tracking_uri"), _TOLD),
    **dict.fromkeys(("experiment_name", "run_name", "project", "name"), _TOLD),
    "token_env": "where a credential is found",
    "accelerator": "refused where the machine is another",
    "megatron_amp_O2": "refused where the precision is another; nothing else looks at it",
    "explicit_log_dir": "a copy of the logs, outside of the store",
    "val_check_interval": "the last step is always validated, and its weights are produced",
}

Key = tuple[str, str, FieldInfo]


def keys(section: type[BaseModel], prefix: str = "") -> Iterator[Key]:
    """Every key that is no table, with its last part and its field."""
    for name, field in section.model_fields.items():
        kinds = union_members(field.annotation)
        inner = [one for one in kinds if isinstance(one, type) and issubclass(one, BaseModel)]
        for kind in inner:
            yield from keys(kind, f"{prefix}{name}.")
        if not inner:
            yield prefix + name, name, field


def is_unused(field: FieldInfo) -> bool:
    extra = field.json_schema_extra
    return isinstance(extra, dict) and bool(extra.get("unused"))


def is_cosmetic(field: FieldInfo) -> bool:
    extra = field.json_schema_extra
    return isinstance(extra, dict) and bool(extra.get("cosmetic"))


def is_held(field: FieldInfo) -> bool:
    """Whether a key takes nothing but what happens anyway."""
    validator = only(0, why="").func.__qualname__
    names = [getattr(getattr(mark, "func", None), "__qualname__", "") for mark in field.metadata]
    one_word = get_origin(field.annotation) is Literal and len(get_args(field.annotation)) == 1
    return one_word or validator in names or any(isinstance(mark, Held) for mark in field.metadata)


@cache
def reads_of(folder: str) -> frozenset[str]:
    """The names of attributes that the sources in a folder read."""
    files = (SOURCES / folder).rglob("*.py")
    own = (file for file in files if not COMPILERS & set(file.relative_to(SOURCES).parts))
    trees = [ast.parse(file.read_text()) for file in own]
    nodes = (node for tree in trees for node in ast.walk(tree))
    return frozenset(
        node.attr
        for node in nodes
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load)
    )


@pytest.fixture(params=STEPS)
def step(request: Any) -> str:
    return str(request.param)


def test_what_is_called_unused_is_read_by_no_code(step: str) -> None:
    read = (reads_of(step) | reads_of("blocks")) - OTHERS.get(step, set())
    declared = keys(load_config_class(CATALOG.find(step)))
    assert [key for key, name, field in declared if is_unused(field) and name in read] == []


def test_what_is_not_called_unused_is_read_or_held(step: str) -> None:
    manifest = CATALOG.find(step)
    read = reads_of(step) | reads_of("blocks") | BY_TABLE.get(step, set())
    known = {*manifest.bound_keys, *BY_RUNTIME}
    declared = keys(load_config_class(manifest))
    idle = [
        key
        for key, name, field in declared
        if not (is_unused(field) or is_held(field) or name in read or key in known)
    ]
    assert idle == []


def test_shipped_configs_set_no_unused_key(step: str) -> None:
    manifest = CATALOG.find(step)
    for name in manifest.configs:
        assert resolve_config(manifest, name=name).unused == (), name


def test_every_key_outside_of_the_identity_has_a_reason(step: str) -> None:
    declared = keys(load_config_class(CATALOG.find(step)))
    outside = {name for _, name, field in declared if is_cosmetic(field) and not is_unused(field)}
    assert outside <= set(COSMETIC)


@pytest.mark.parametrize(
    ("step", "overrides"),
    [
        ("sft/chat", ["trainer.sft.limit_val_batches=0.5"]),
        ("sft/chat", ["model.data.validation_ds.global_batch_size=7"]),
        ("reward/regression", ["trainer.rm.limit_val_batches=0.5"]),
        ("rs/actor", ["model.rs.num_val_samples=8"]),
        ("rs/actor", ["model.rs.val_rollout_micro_batch_size=8"]),
        ("rl/rlhf", ["grpo.val_num_generations_per_prompt=2"]),
        ("rl/rlhf", ["grpo.val_at_end=false"]),
        ("rl/rlhf", ["grpo.val_period=1"]),
        ("rl/rlhf", ["judge.min_accuracy=0.9"]),
        ("rl/rlhf", ["judge.min_swap_agreement=0.9"]),
        ("rl/rlhf", ["data.allow_train_as_validation=true"]),
        ("eval/arena", ["judge.waiting.tries=1"]),
        ("judge/card", ["batch_tokens=4096"]),
    ],
    ids=lambda value: str(value),
)
def test_what_changes_a_record_or_a_promise_is_another_run(step: str, overrides: list[str]) -> None:
    manifest = CATALOG.find(step)
    plain = resolve_config(manifest, name="tiny").semantic
    assert resolve_config(manifest, name="tiny", overrides=overrides).semantic != plain


ALIGNER = {
    "activations_checkpoint_granularity": "some",
    "gradient_accumulation_fusion": "true",
    "cpu_offloading": "true",
    "fp8": "true",
}
MORE = {
    "rs/actor": {"rs.offload_adam_states": "true"},
    "sft/steerlm2": {"answer_only_loss": "false"},
}
NEMO_RL = {
    "policy.megatron_cfg.gradient_accumulation_fusion": "true",
    "policy.megatron_cfg.fine_grained_activation_offloading": "true",
    "policy.megatron_cfg.defer_fp32_logits": "true",
    "policy.megatron_cfg.optimizer.fp16": "true",
    "policy.megatron_cfg.optimizer.bf16": "true",
    "policy.megatron_cfg.optimizer.params_dtype": "bfloat16",
    "policy.megatron_cfg.optimizer.optimizer_cpu_offload": "true",
    "policy.megatron_cfg.optimizer.optimizer_offload_fraction": "0.5",
    "policy.megatron_cfg.scheduler.start_weight_decay": "0.1",
    "policy.megatron_cfg.scheduler.end_weight_decay": "0.1",
    "policy.offload_optimizer_for_logprob": "true",
    "policy.logprob_chunk_size": "1024",
    **{key: "true" for key, _ in HELD_ELSEWHERE if key.startswith("policy.")},
}


def refused_keys(step: str, values: dict[str, str]) -> list[str]:
    """The keys that the step refuses; each says what it got, and what is allowed or to be done."""
    overrides = [f"++{key}={value}" for key, value in values.items()]
    with pytest.raises(ConfigError) as caught:
        resolve_config(CATALOG.find(step), name="tiny", overrides=overrides)
    problems = caught.value.problems
    assert all(one.got and (one.allowed or one.fix) for one in problems)
    return sorted(one.key for one in problems)


@pytest.mark.parametrize("step", ["reward/regression", "rs/actor", "sft/chat", "sft/steerlm2"])
def test_what_would_save_memory_in_nemo_aligner_is_refused_and_not_ignored(step: str) -> None:
    promises = {f"model.{key}": value for key, value in {**ALIGNER, **MORE.get(step, {})}.items()}
    assert refused_keys(step, promises) == sorted(promises)
    opposites = {key: "false" if value == "true" else "null" for key, value in ALIGNER.items()}
    overrides = [f"++model.{key}={value}" for key, value in opposites.items()]
    assert resolve_config(CATALOG.find(step), name="tiny", overrides=overrides).unused == ()


@pytest.mark.parametrize("step", ["reward/regression", "rs/actor", "sft/chat", "sft/steerlm2"])
def test_full_recomputation_says_which_layers(step: str) -> None:
    full = {"model.activations_checkpoint_granularity": "full"}
    assert refused_keys(step, full) == ["model.activations_checkpoint_method"]


def test_a_model_is_not_changed_through_its_base_config() -> None:
    key = "model.overwrite_base_config"
    assert refused_keys("rs/actor", {f"{key}.sequence_parallel": "true"}) == [key]


def test_what_would_save_memory_in_nemo_rl_is_refused_by_our_own_loop() -> None:
    assert refused_keys("rl/rlhf", NEMO_RL) == sorted(NEMO_RL)


def has_precision(step: str) -> bool:
    schema = load_config_class(CATALOG.find(step))
    return any(key == "trainer.precision" for key, _, _ in keys(schema))


@pytest.mark.parametrize("value", ["16", "'16'", "fp16", "16-mixed"])
@pytest.mark.parametrize("step", [step for step in STEPS if has_precision(step)])
def test_float16_is_refused_with_what_to_take_instead(step: str, value: str) -> None:
    with pytest.raises(ConfigError, match=r"trainer\.precision.*bf16"):
        resolve_config(CATALOG.find(step), name="tiny", overrides=[f"trainer.precision={value}"])


def test_float16_is_refused_under_the_name_of_nemo_rl() -> None:
    assert refused_keys("rl/rlhf", {"policy.precision": "float16"}) == ["policy.precision"]


def test_what_is_set_and_unused_is_named() -> None:
    overrides = ["model.data.num_workers=2", "model.data.train_ds.hf_dataset=true", "name=mine"]
    resolved = resolve_config(CATALOG.find("sft/steerlm2"), name="tiny", overrides=overrides)
    assert resolved.unused == (
        "name",
        "model.data.num_workers",
        "model.data.train_ds.hf_dataset",
    )
    plain = resolve_config(CATALOG.find("sft/steerlm2"), name="tiny")
    assert resolved.semantic == plain.semantic


def test_a_plan_of_before_is_read_with_its_unused_keys_and_without_the_new_ones() -> None:
    manifest = CATALOG.find("sft/steerlm2")
    schema = load_config_class(manifest)
    values = resolve_config(manifest, name="tiny", overrides=["model.data.num_workers=2"]).values
    before = {**values, "model": {k: v for k, v in values["model"].items() if k not in ALIGNER}}
    assert parse_config(schema, before, where=str) == parse_config(schema, values, where=str)
