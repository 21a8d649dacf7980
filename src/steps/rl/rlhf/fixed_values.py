"""How the keys of NeMo-RL and NeMo-Gym are held that decide nothing in our own loop.

They are there so that command lines carry over. A key is *without effect* (``unused``: any value
of its type, it tunes something that does not exist here), held to *one value* whoever trains
(``fixed``), or held to one value where our own loop trains (``held``; NeMo-RL will know what to do
with others). ``docs/steps/rl-rlhf.md`` lists them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field

from nemotron_style.runtime.config.model import Section, cosmetic, unused
from nemotron_style.steps.blocks.settings.fixed_value import fixed, only
from nemotron_style.steps.blocks.settings.not_built import NO_FP8
from nemotron_style.steps.blocks.settings.tracker_config import MlflowLogger, WandbLogger

NO_FSDP = "not built: data parallel processes hold the same weights"
DEAD = "no version of NeMo-RL that can be compiled for reads it"
_STORE = "the store keeps checkpoints and models"
_TRACKER = "not built"
_TRACKER_FIX = "take logger.wandb_enabled, logger.mlflow_enabled or TensorBoard"


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


_PACKING = "prompts and their answers are packed by group, up to the sizes of a pass"
_PACKING_FIX = "set policy.train_micro_batch_size and policy.logprob_batch_size"
_MEGATRON = "policy.megatron_cfg"

HELD_ELSEWHERE = (
    ("loss_fn.use_kl_in_reward", Held((False,), "the estimator of advantages takes no KL")),
    ("policy.sequence_packing.enabled", Held((None, False), _PACKING, _PACKING_FIX)),
    ("policy.dynamic_batching.enabled", Held((None, False), _PACKING, _PACKING_FIX)),
    ("policy.draft.enabled", Held((None, False), "not built: no second model drafts answers")),
    (f"{_MEGATRON}.fp8_cfg.enabled", Held((None, False), NO_FP8)),
    (
        f"{_MEGATRON}.distributed_data_parallel_config.use_custom_fsdp",
        Held((None, False), NO_FSDP, "use smaller passes, or more processes in bfloat16"),
    ),
)
"""Held keys of sections that are not this step's own, and of tables of any keys."""

_ENGINE = "each process has an engine of its own, which holds the whole model"
_GENERATION = "policy.generation"
_WHOLE = "vLLM is handed the model by a process that holds it whole"
_IN_PROCESS = "set policy.generation.backend=in_process"

HELD_WITH_VLLM = (
    (f"{_MEGATRON}.tensor_model_parallel_size", Held((1,), _WHOLE, _IN_PROCESS)),
    (f"{_MEGATRON}.pipeline_model_parallel_size", Held((1,), _WHOLE, _IN_PROCESS)),
    (f"{_GENERATION}.vllm_cfg.tensor_parallel_size", Held((None, 1), _ENGINE)),
    (f"{_GENERATION}.vllm_cfg.pipeline_parallel_size", Held((None, 1), _ENGINE)),
    (f"{_GENERATION}.vllm_cfg.expert_parallel_size", Held((None, 1), _ENGINE)),
    (
        f"{_GENERATION}.vllm_cfg.kv_cache_dtype",
        Held((None, "auto"), "keys and values have the type of the weights"),
    ),
    (f"{_GENERATION}.vllm_kwargs", Held(({},), "the engine is set up by the step")),
    (
        f"{_GENERATION}.colocated.enabled",
        Held((None, True), "the engine runs beside its trainer, on the same GPU"),
    ),
)
"""Held keys where vLLM samples for our own loop: what they ask for, its engine does not do."""


class Checkpointing(Section):
    """``checkpointing``: the state of a run; ``keep_top_k`` newest of them stay."""

    enabled: bool = fixed(True, why="a run that cannot continue is not begun")
    checkpoint_dir: str | None = held(None, why=_STORE)
    metric_name: str | None = held(None, why="the last weights are produced, not chosen ones")
    higher_is_better: bool = unused(True)
    keep_top_k: int | None = cosmetic(default=2, ge=1)
    save_period: int = cosmetic(default=10, ge=0, description="steps; 0: at the end alone")
    checkpoint_must_save_by: str | None = held(None, why="a run that is told to stop saves")
    model_save_format: str | None = held(None, why="the form of checkpoints is one")
    save_consolidated: bool = held(False, why="convert/megatron_to_hf makes that form")
    save_optimizer: bool = held(True, why="a run continues exactly or not at all")


class Logger(Section):
    """``logger``: a run keeps its own logs, and tells trackers of them."""

    log_dir: str | None = held(None, why="logs lie in the run's folder")
    num_val_samples_to_print: int = unused(0, ge=0)
    wandb_enabled: bool = cosmetic(False)
    mlflow_enabled: bool = cosmetic(False)
    swanlab_enabled: bool = fixed(False, why=_TRACKER, fix=_TRACKER_FIX)
    tensorboard_enabled: bool = unused(True)
    monitor_gpus: bool = unused(False)
    wandb: WandbLogger = WandbLogger()
    tensorboard: dict[str, Any] = unused({})
    mlflow: MlflowLogger = MlflowLogger()
    swanlab: dict[str, Any] = unused({})
    gpu_monitoring: dict[str, Any] = unused({})


class Cluster(Section):
    """``cluster``: machines, and what they have."""

    gpus_per_node: int = cosmetic(default=1, ge=1)
    num_nodes: int = cosmetic(default=1, ge=1)
    master_port_range_low: int | None = unused(None)
    master_port_range_high: int | None = unused(None)
    segment_size: int | None = unused(None)


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
