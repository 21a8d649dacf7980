"""Config sections that training steps share, under NeMo-Aligner's names; readable without torch.

A step derives its own section where its keys or defaults differ.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from nemotron_style.runtime.config.model import MLFLOW, WANDB, Section, Tracker, cosmetic, unused
from nemotron_style.runtime.errors import Problem
from nemotron_style.steps.blocks.settings.fixed_value import fixed
from nemotron_style.steps.blocks.settings.not_built import refuse_float16
from nemotron_style.steps.blocks.settings.tracker_config import (
    Logger,
    MlflowLogger,
    WandbLogger,
    find_trackers,
    logger,
)

Count = Annotated[int, Field(ge=1)]


class Precision(Section):
    """``trainer.precision``: the type of weights and activations."""

    precision: Annotated[
        Literal["bf16", "bf16-mixed", "32", "32-true", 32], BeforeValidator(refuse_float16)
    ] = "bf16"

    @property
    def half(self) -> bool:
        """Whether weights and activations are bfloat16."""
        return str(self.precision).startswith("bf16")


class TrackedPrecision(Precision):
    """``trainer`` of a step that trains nothing and has metrics."""

    logger: Logger = logger()


class SampleCount(Section):
    """``samples``: what the model gave before and gives after training, in ``samples/samples.md``.

    It is for people, and changes nothing of the training.
    """

    prompts: int = cosmetic(default=4, ge=0, description="held-out rows first; 0 for no samples")


class Samples(SampleCount):
    """``samples``: greedy answers to the same few prompts."""

    max_new_tokens: Count = cosmetic(default=128)


class Job(Precision):
    """``trainer``: processes and precision."""

    num_nodes: Count = cosmetic(default=1)
    devices: Count = cosmetic(default=1, description="processes on each node")
    samples: SampleCount = SampleCount()


class AlignerJob(Job):
    """``trainer`` as NeMo-Aligner's commands give it, with its part "do not change these"."""

    samples: Samples = Samples()

    accelerator: Literal["auto", "cpu", "gpu"] = cosmetic(default="auto")
    max_epochs: int | None = cosmetic(default=None)
    max_steps: int | None = cosmetic(default=None)
    logger: Logger = logger()
    enable_checkpointing: bool = fixed(
        False, why="checkpoints follow save_interval of the step's own section"
    )
    use_distributed_sampler: bool = fixed(False, why="the order of rows is fixed by the seed alone")
    max_time: str | None = fixed(
        None,
        why="a run has no clock of its own",
        fix="set the time limit in the profile: a run that is told to stop saves its state",
    )


class Length(Section):
    """Where training ends, and how often it validates and saves.

    Intervals count steps; 0 means at no other time than the end, which is always validated and
    saved.
    """

    max_epochs: Annotated[int, Field(ge=-1)] | None = 1
    max_steps: int = Field(default=-1, ge=-1)
    val_check_interval: int = cosmetic(default=100, ge=0)
    save_interval: Annotated[int, Field(ge=0)] | None = cosmetic(
        default=None, description="null: as val_check_interval"
    )
    gradient_clip_val: float = Field(default=1.0, ge=0)

    @property
    def steps_between_saves(self) -> int:
        """Steps between two saves of the state; 0 for none but the last."""
        return self.val_check_interval if self.save_interval is None else self.save_interval

    def find_missing_end(self, key: str, *, sample: bool = False) -> list[Problem]:
        """Problems of a section ``key`` that never ends; ``sample`` repeats the data endlessly."""
        problems = []
        if self.max_steps < 0 and (self.max_epochs is None or self.max_epochs < 0):
            fix = f"set {key}.max_steps or {key}.max_epochs"
            problems.append(Problem(key=key, what="no end is given", fix=fix))
        if sample and self.max_steps < 0:
            what = "the data are repeated without end, so the number of steps must be said"
            fix = f"set {key}.max_steps"
            problems.append(Problem(key="model.data.sample", what=what, fix=fix))
        return problems


ValidationLimit = Count | Annotated[float, Field(gt=0, le=1)]
"""``limit_val_batches``: a number of batches, or a share of the rows."""


def limit_validation(limit: int | float, available: int, *, batch_size: int) -> int:
    """How many validation rows are used, the first ones."""
    if isinstance(limit, float):
        return max(1, int(limit * available))
    return min(available, limit * batch_size)


class CheckpointCallback(Section):
    """``exp_manager.checkpoint_callback_params``; the ``save_top_k`` newest states stay."""

    save_top_k: int = cosmetic(default=2, ge=1)
    filename: str | None = unused(None)
    model_parallel_size: int | None = unused(None)


class LastCheckpoint(CheckpointCallback):
    """The callback of a step that produces its last weights, whatever is monitored."""

    monitor: str = unused("val_loss")
    mode: str = unused("min")
    always_save_nemo: bool = unused(False)
    save_nemo_on_train_end: bool = unused(True)
    save_best_model: bool = unused(False)


class ExpManager(Section):
    """``exp_manager``: the store keeps runs, logs and models, so little is left to manage."""

    explicit_log_dir: str | None = cosmetic(default=None)
    exp_dir: str | None = fixed(
        None, why="not used", fix="set exp_manager.explicit_log_dir to get a copy of the logs"
    )
    name: str | None = unused(None)
    create_wandb_logger: bool = cosmetic(False, description="as trainer.logger=[wandb]")
    wandb_logger_kwargs: WandbLogger = WandbLogger()
    create_mlflow_logger: bool = cosmetic(False, description="as trainer.logger=[mlflow]")
    mlflow_logger_kwargs: MlflowLogger = MlflowLogger()
    resume_if_exists: bool = fixed(
        True, why="a run always continues from its checkpoint", fix="start anew with --fresh"
    )
    resume_ignore_no_checkpoint: bool = fixed(
        True, why="a run without a checkpoint starts at the beginning"
    )
    create_checkpoint_callback: bool = fixed(
        True, why="checkpoints are always written", fix="set save_interval=0 for none but the last"
    )
    checkpoint_callback_params: CheckpointCallback = CheckpointCallback()


class LastExpManager(ExpManager):
    """``exp_manager`` of a step that produces its last weights."""

    resume_from_checkpoint: str | None = fixed(None, why="a run continues from its own checkpoints")
    checkpoint_callback_params: LastCheckpoint = LastCheckpoint()


def trackers_of(trainer: AlignerJob, manager: ExpManager) -> Mapping[str, Tracker]:
    """The trackers that ``trainer`` and ``exp_manager`` ask for."""
    asked = {
        "exp_manager.create_wandb_logger": (WANDB,) if manager.create_wandb_logger else (),
        "exp_manager.create_mlflow_logger": (MLFLOW,) if manager.create_mlflow_logger else (),
        "trainer.logger": trainer.logger,
    }
    return find_trackers(asked, manager.wandb_logger_kwargs, manager.mlflow_logger_kwargs)


class CheckpointPath(Section):
    """One checkpoint, named as NeMo-Aligner names it."""

    restore_from_path: str | None = None
