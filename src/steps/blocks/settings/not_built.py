"""Keys by which memory is saved, and those that promise memory or arithmetic that no step has.

A key that tunes nothing may be ignored with a note (``unused``). One that promises something may
not: the run would take more memory, or compute other numbers, than was asked for.
"""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import model_validator

from nemotron_style.runtime.config.model import Section, cosmetic, unused
from nemotron_style.runtime.errors import ConfigError, Problem
from nemotron_style.steps.blocks.settings.fixed_value import fixed
from nemotron_style.steps.blocks.settings.parallel_config import Activations, Method

NO_FUSION = "not built: gradients are added up by PyTorch"
NO_OFFLOAD = "not built: nothing is moved to the memory of the host"
NO_FP8 = "not built: products are computed in the type of the weights"
SMALLER_PASS = "lower micro_batch_size: a pass then holds fewer activations"
_HOW = "where granularity is full: "
_METHOD_MISSING = Problem(
    key="model.activations_checkpoint_method",
    what="the granularity full does not say which layers are computed again",
    got="null",
    allowed="uniform or block",
    fix="set model.activations_checkpoint_method=uniform for all of them, or "
    "model.activations_checkpoint_granularity=null to keep all activations",
)
SMALLER_SHARE = "spread the optimizer's state with model.optim.name=distributed_fused_adam instead"

_FLOAT16 = ("16", "16-mixed", "16-true", "fp16", "float16", "half")


class SavesMemory(Section):
    """The keys of ``model`` by which NeMo-Aligner saves memory or computes in fewer bits."""

    sequence_parallel: bool = cosmetic(
        default=False, description="tensor ranks share the activations that all would hold"
    )
    # `selective` does not keep the products of queries and keys. Torch's fused attention never
    # does, so that it asks for what happens anyway.
    activations_checkpoint_granularity: Literal["selective", "full"] | None = cosmetic(default=None)
    activations_checkpoint_method: Method | None = cosmetic(
        default=None, description=f"{_HOW}all layers, or the first of a pipeline stage"
    )
    activations_checkpoint_num_layers: int | None = cosmetic(
        default=None, ge=1, description=f"{_HOW}layers of a group, or how many; null: 1"
    )
    activations_checkpoint_layers_per_pipeline: int | None = unused(None)
    gradient_accumulation_fusion: bool = fixed(False, why=NO_FUSION, fix="leave it false")
    cpu_offloading: bool = fixed(False, why=NO_OFFLOAD, fix=SMALLER_PASS)
    fp8: bool = fixed(False, why=NO_FP8, fix="set trainer.precision=bf16")

    @property
    def activations(self) -> Activations:
        """Which activations are kept."""
        full = self.activations_checkpoint_granularity == "full"
        return Activations(
            sequence_parallel=self.sequence_parallel,
            recompute_method=self.activations_checkpoint_method if full else None,
            recompute_num_layers=self.activations_checkpoint_num_layers or 1,
        )

    @model_validator(mode="after")
    def _says_what_is_recomputed(self) -> Self:
        full = self.activations_checkpoint_granularity == "full"
        if full and self.activations_checkpoint_method is None:
            raise ConfigError(_METHOD_MISSING)
        return self


def refuse_float16(value: Any) -> Any:
    """``value``, unless it asks for float16, which needs a scale for its loss."""
    if value in _FLOAT16 or (value == 16 and type(value) is int):
        what = "not built: float16 needs a scale of the loss that follows the gradients"
        fix = "bfloat16 (bf16) takes as much memory and needs none; on a CPU take float32 (32)"
        raise ConfigError(Problem(what=what, got=str(value), fix=fix))
    return value
