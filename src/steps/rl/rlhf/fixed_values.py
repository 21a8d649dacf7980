"""Keys of NeMo-RL and NeMo-Gym that decide nothing in our own loop, so that commands carry over.

A key is *without effect* (``cosmetic``: any value of its type, it tunes something that does not
exist here), held to *one value* whoever trains (``fixed``), or held to one value where our own loop
trains (``held``; NeMo-RL will know what to do with others). ``docs/steps/rl-rlhf.md`` lists them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import AfterValidator, Field

from nemotron_style.runtime.config.model import Section, cosmetic
from nemotron_style.runtime.errors import ConfigError, Problem
from nemotron_style.steps.blocks.settings.fixed_value import fixed, only

_DEAD = "no version of NeMo-RL that can be compiled for reads it"
_MEGATRON = "is read where DTensor trains, and Megatron does"
_STORE = "the store keeps checkpoints and models"
_TRACKER = "no outside service is told about a run"
_TRACKER_FIX = "read metrics.jsonl or the TensorBoard files of the run"
_WHOLE = "each process holds the whole model"


@dataclass(frozen=True)
class Held:
    """Marks a field that our own loop takes at ``allowed`` values alone."""

    allowed: tuple[Any, ...]
    why: str
    fix: str = ""


def held(default: Any, *also: Any, why: str, fix: str = "", **limits: Any) -> Any:
    """A field that our own loop holds to ``default``, and perhaps to the values ``also``."""
    field = Field(default=default, **limits)
    field.metadata.append(Held((default, *also), why, fix))
    return field


def held_keys(section: type[Section], prefix: str = "") -> Iterator[tuple[str, Held]]:
    """Every key below ``section`` that is held, with what it is held to."""
    for name, field in section.model_fields.items():
        yield from ((prefix + name, mark) for mark in field.metadata if isinstance(mark, Held))
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            yield from held_keys(field.annotation, f"{prefix}{name}.")


HELD_ELSEWHERE = (
    ("loss_fn.use_kl_in_reward", Held((False,), "the estimator of advantages takes no KL")),
)
"""Held keys of sections that are not this step's own."""


class AsyncGrpo(Section):
    """``grpo.async_grpo``."""

    enabled: bool = held(False, why="a step is trained on its own samples")
    max_trajectory_age_steps: int = cosmetic(default=1)
    max_generation_failures: int = cosmetic(default=0)
    in_flight_weight_updates: bool = cosmetic(default=False)
    recompute_kv_cache_after_weight_updates: bool = cosmetic(default=False)


class GrpoRest(Section):
    """The part of ``grpo`` that our own loop holds to one value, or that nothing reads."""

    max_rollout_turns: int = held(1, why="a sample is one answer")
    use_dynamic_sampling: bool = held(
        False, why="verdicts of a judge seldom tie", fix="leave it off"
    )
    dynamic_sampling_max_gen_batches: int = cosmetic(default=10)
    batch_multiplier: int | float = held(1, 1.0, why="needs grpo.use_dynamic_sampling")
    async_grpo: AsyncGrpo = AsyncGrpo()
    invalid_tool_call_advantage: float | None = held(None, why="answers hold no tool calls")
    malformed_thinking_advantage: float | None = held(
        None, why="only the final answer is looked at"
    )
    stop_at_validation_metric: str | None = held(None, why="the run has a fixed length")
    val_batch_size: int | None = cosmetic(default=None)
    max_val_samples: int | None = held(None, why="all validation prompts are answered")
    calculate_advantages_on_gpu: bool = cosmetic(default=False)
    penalize_invalid_tool_call: bool = cosmetic(default=True)
    penalize_malformed_thinking: bool = cosmetic(default=True)
    use_best_at_k: bool = fixed(False, why=_DEAD)
    best_at_k_k: int = cosmetic(default=8)
    best_at_k_m: int = cosmetic(default=1000)
    use_combined_training: bool = fixed(False, why=_DEAD)
    combined_training_weight_mode: str = cosmetic(default="auto")
    combined_training_best_at_k_weight: float = cosmetic(default=0.2)
    combined_training_pass_at_1_weight: float = cosmetic(default=1.0)
    dynamic_sampling_oversample_ratio: float = fixed(1.0, why=_DEAD)


class TokenizerRest(Section):
    """``policy.tokenizer``."""

    name: str | None = held(None, why="the checkpoint has its own tokenizer")
    chat_template: str | None = held(None, why="the checkpoint has its own template")
    chat_template_kwargs: dict[str, Any] | None = held(None, {}, why="the template takes none")


class GenerationRest(Section):
    """The part of ``policy.generation`` that describes vLLM."""

    port_range_low: int = cosmetic(default=11001)
    port_range_high: int = cosmetic(default=15000)
    vllm_cfg: dict[str, Any] = cosmetic(default={})
    vllm_kwargs: dict[str, Any] = cosmetic(default={})
    colocated: dict[str, Any] = cosmetic(default={})


class MegatronRest(Section):
    """The part of ``policy.megatron_cfg`` that divides a model or tunes kernels."""

    enabled: bool = fixed(
        True, why="only Megatron makes a checkpoint_megatron", fix="leave it true"
    )
    tensor_model_parallel_size: int = held(1, why=_WHOLE)
    pipeline_model_parallel_size: int = held(1, why=_WHOLE)
    context_parallel_size: int = held(1, why=_WHOLE)
    expert_model_parallel_size: int = held(1, why=_WHOLE)
    expert_tensor_parallel_size: int = held(1, why=_WHOLE)
    sequence_parallel: bool = cosmetic(default=False)
    activation_checkpointing: bool = cosmetic(default=False)
    empty_unused_memory_level: int = cosmetic(default=1)
    converter_type: str | None = cosmetic(default=None)
    num_layers_in_first_pipeline_stage: int | None = cosmetic(default=None)
    num_layers_in_last_pipeline_stage: int | None = cosmetic(default=None)
    pipeline_dtype: str | None = cosmetic(default=None)
    apply_rope_fusion: bool = cosmetic(default=True)
    bias_activation_fusion: bool = cosmetic(default=True)
    defer_fp32_logits: bool = cosmetic(default=False)
    freeze_moe_router: bool = cosmetic(default=True)
    moe_router_dtype: str | None = cosmetic(default="fp64")
    moe_router_load_balancing_type: str = cosmetic(default="none")
    moe_router_bias_update_rate: float = cosmetic(default=0.0)
    moe_permute_fusion: bool = cosmetic(default=False)
    moe_per_layer_logging: bool = cosmetic(default=False)
    moe_enable_deepep: bool = cosmetic(default=False)
    moe_token_dispatcher_type: str = cosmetic(default="alltoall")
    moe_shared_expert_overlap: bool = cosmetic(default=False)
    distributed_data_parallel_config: dict[str, Any] = cosmetic(default={})
    fp8_cfg: dict[str, Any] | None = cosmetic(default=None)
    env_vars: dict[str, str] | None = cosmetic(default=None)


def _refuse_dtensor(config: dict[str, Any]) -> dict[str, Any]:
    if config.get("enabled", False) is not False:
        what = "DTensor makes no checkpoint_megatron, which this step produces"
        fix = "leave policy.megatron_cfg.enabled=true"
        got = str(config["enabled"])
        raise ConfigError(Problem(key="policy.dtensor_cfg.enabled", what=what, got=got, fix=fix))
    return config


class PolicyRest(Section):
    """The part of ``policy`` that is not ours, or bounds memory."""

    hf_config_overrides: dict[str, Any] = held({}, why="the checkpoint knows its own sizes")
    dtensor_cfg: Annotated[dict[str, Any], AfterValidator(_refuse_dtensor)] = Field(default={})
    generation_batch_size: int | None = cosmetic(default=None)
    logprob_chunk_size: int | None = cosmetic(default=None)
    offload_optimizer_for_logprob: bool = cosmetic(default=False)
    refit_buffer_size_gb: float | None = cosmetic(default=None)
    dynamic_batching: dict[str, Any] = cosmetic(default={})
    sequence_packing: dict[str, Any] = cosmetic(default={})
    draft: dict[str, Any] = cosmetic(default={})
    make_sequence_length_divisible_by: int = cosmetic(default=1)
    optimizer: dict[str, Any] | None = fixed(
        None, why=_MEGATRON, fix="set policy.megatron_cfg.optimizer"
    )
    scheduler: list[Any] | None = fixed(
        None, why=_MEGATRON, fix="set policy.megatron_cfg.scheduler"
    )


class DataRest(Section):
    """The part of ``data`` that tunes loaders, or that data preparation has done."""

    max_input_seq_length: int | None = held(None, why="prompts are never cut")
    num_workers: int = cosmetic(default=0, ge=0)
    use_multiple_dataloader: bool = fixed(False, why="there is one file of prompts")
    manifest_path: str | None = fixed(
        None,
        why="names files that lineage would not see",
        fix="set data.train.data_path and data.validation.data_path",
    )
    default_agent_ref: str | dict[str, Any] | None = cosmetic(default=None)
    normalized_data_dir: str | None = cosmetic(default=None)
    default: dict[str, Any] = cosmetic(default={})


class Checkpointing(Section):
    """``checkpointing``: the state of a run; ``keep_top_k`` newest of them stay."""

    enabled: bool = fixed(True, why="a run that cannot continue is not begun")
    checkpoint_dir: str | None = held(None, why=_STORE)
    metric_name: str | None = held(None, why="the last weights are produced, not chosen ones")
    higher_is_better: bool = cosmetic(default=True)
    keep_top_k: int | None = cosmetic(default=2, ge=1)
    save_period: int = cosmetic(default=10, ge=0, description="steps; 0: at the end alone")
    checkpoint_must_save_by: str | None = held(None, why="a run that is told to stop saves")
    model_save_format: str | None = held(None, why="the form of checkpoints is one")
    save_consolidated: bool = held(False, why="convert/megatron_to_hf makes that form")
    save_optimizer: bool = held(True, why="a run continues exactly or not at all")


class Logger(Section):
    """``logger``: a run keeps its own logs."""

    log_dir: str | None = held(None, why="logs lie in the run's folder")
    num_val_samples_to_print: int = cosmetic(default=0, ge=0)
    wandb_enabled: bool = fixed(False, why=_TRACKER, fix=_TRACKER_FIX)
    mlflow_enabled: bool = fixed(False, why=_TRACKER, fix=_TRACKER_FIX)
    swanlab_enabled: bool = fixed(False, why=_TRACKER, fix=_TRACKER_FIX)
    tensorboard_enabled: bool = cosmetic(default=True)
    monitor_gpus: bool = cosmetic(default=False)
    wandb: dict[str, Any] = cosmetic(default={})
    tensorboard: dict[str, Any] = cosmetic(default={})
    mlflow: dict[str, Any] = cosmetic(default={})
    swanlab: dict[str, Any] = cosmetic(default={})
    gpu_monitoring: dict[str, Any] = cosmetic(default={})


class Cluster(Section):
    """``cluster``: machines, and what they have."""

    gpus_per_node: int = cosmetic(default=1, ge=1)
    num_nodes: int = cosmetic(default=1, ge=1)
    master_port_range_low: int | None = cosmetic(default=None)
    master_port_range_high: int | None = cosmetic(default=None)
    segment_size: int | None = cosmetic(default=None)


class NemoGymRest(Section):
    """The part of ``env.nemo_gym`` that describes Gym's own processes."""

    uv_venv_dir: str | None = cosmetic(default=None)
    skip_venv_if_present: bool = cosmetic(default=True)
    num_gpu_nodes: int = cosmetic(default=0, ge=0)
    port_range_low: int = cosmetic(default=15001)
    port_range_high: int = cosmetic(default=20000)
    is_trajectory_collection: bool = cosmetic(default=False)
    rollout_max_attempts_to_avoid_lp_nan: int = cosmetic(default=1)
    invalid_tool_call_patterns: list[str] = cosmetic(default=[])
    thinking_tags: list[str] = cosmetic(default=[])
    config_paths: list[str] = cosmetic(default=[])
    policy_model: dict[str, Any] = cosmetic(default={})
    policy_model_reasoning_off: dict[str, Any] = cosmetic(default={})


class EnvRest(Section):
    """The part of ``env`` that nothing here reads."""

    should_log_nemo_gym_responses: bool = cosmetic(default=True)
    should_mask_flagged_samples: bool = fixed(
        True, why="what could not be judged is never trained on"
    )
    use_genrm_compare: bool = fixed(True, why=_DEAD)
    genrm_agent_names: list[str] = cosmetic(default=["genrm_simple_agent"])
    genrm_compare_server_name: str | None = cosmetic(default=None)


class ImplementationRest(Section):
    """The part of a judge's server that describes vLLM."""

    entrypoint: str | None = cosmetic(default=None)
    uses_reasoning_parser: bool = cosmetic(default=False)
    return_token_id_information: bool = cosmetic(default=False)
    hf_home: str | None = cosmetic(default=None)
    debug: bool = cosmetic(default=False)
    vllm_serve_env_vars: dict[str, str] = cosmetic(default={})
    vllm_serve_kwargs: dict[str, Any] = cosmetic(default={})
    base_url: list[str] | None = fixed(
        None, [], why="names a judge that is there already", fix="set judge.url"
    )


class Server(Section):
    """A reference to one of Gym's servers."""

    type: str = "responses_api_models"
    name: str = fixed("genrm_model", why="there is one judge")


Run = Annotated[
    dict[str, Any] | None,
    only(
        None,
        {},
        why="where and how a step runs is no part of its config",
        fix="say it in a profile",
    ),
]
"""``run``: what Nemotron's launcher reads."""
