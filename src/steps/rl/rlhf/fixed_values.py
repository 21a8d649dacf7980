"""How the keys of NeMo-RL and NeMo-Gym are held that decide nothing in our own loop.

They are there so that command lines carry over. A key is *without effect* (``cosmetic``: any value
of its type, it tunes something that does not exist here), held to *one value* whoever trains
(``fixed``), or held to one value where our own loop trains (``held``; NeMo-RL will know what to do
with others). ``docs/steps/rl-rlhf.md`` lists them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field

from nemotron_style.runtime.config.model import Section, cosmetic
from nemotron_style.steps.blocks.settings.fixed_value import fixed, only

DEAD = "no version of NeMo-RL that can be compiled for reads it"
_STORE = "the store keeps checkpoints and models"
_TRACKER = "no outside service is told about a run"
_TRACKER_FIX = "read metrics.jsonl or the TensorBoard files of the run"


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
