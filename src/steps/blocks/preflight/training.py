"""What a step that trains with NeMo-Aligner's keys says of its job."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from nemotron_style.runtime.config.model import Section
from nemotron_style.steps.blocks.preflight.job import Rows
from nemotron_style.steps.blocks.preflight.memory import Load
from nemotron_style.steps.blocks.settings.optimizer_config import OptimConfig
from nemotron_style.steps.blocks.settings.parallel_config import Activations
from nemotron_style.steps.blocks.settings.peft_config import LoraTuning
from nemotron_style.steps.blocks.settings.training_config import Precision

if TYPE_CHECKING:
    from nemotron_style.steps.blocks.data.layouts.layout import Use


class TrainedModel(Protocol):
    """``model`` of such a step."""

    tensor_model_parallel_size: int
    pipeline_model_parallel_size: int

    @property
    def optim(self) -> OptimConfig: ...

    @property
    def activations(self) -> Activations: ...


def training_load(
    trainer: Precision, model: TrainedModel, *, pass_rows: int, lora: LoraTuning | None = None
) -> Load:
    """What a process holds that trains ``model``, or adapters of ``lora``."""
    return Load(
        half=trainer.half,
        tensor=model.tensor_model_parallel_size,
        pipeline=model.pipeline_model_parallel_size,
        spread_optimizer=model.optim.distributed,
        activations=model.activations,
        pass_rows=pass_rows,
        lora=lora,
    )


def batch_rows(use: Use | None, data: Section, *, key: str, size: int, sample: bool) -> Rows:
    """Rows that fill a global batch of ``size``, which stands at ``key``.

    With ``sample`` they are repeated, so that any number of them does.
    """
    fix = "lower it, or set model.data.sample=true and max_steps to repeat rows"
    return Rows(use, needed=0 if sample else size, key=key, fix=fix, settings=data)
