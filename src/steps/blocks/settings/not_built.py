"""Keys that promise memory or a kind of arithmetic that no step has: they are refused.

A key that tunes nothing may be ignored with a note (``unused``). One of these may not: the run
would take more memory, or compute other numbers, than was asked for.
"""

from __future__ import annotations

from typing import Any, Literal

from nemotron_style.runtime.config.model import Section, unused
from nemotron_style.runtime.errors import ConfigError, Problem
from nemotron_style.steps.blocks.settings.fixed_value import fixed

NO_RECOMPUTE = "not built: activations are kept, not computed again"
_HOW_TO_RECOMPUTE = "says how activations are computed again, where granularity is full"
NO_SEQUENCE_PARALLEL = "not built: activations are not divided along the sequence"
NO_FUSION = "not built: gradients are added up by PyTorch"
NO_OFFLOAD = "not built: nothing is moved to the memory of the host"
NO_FP8 = "not built: products are computed in the type of the weights"
SMALLER_PASS = "lower micro_batch_size: a pass then holds fewer activations"
SMALLER_SHARE = "spread the optimizer's state with model.optim.name=distributed_fused_adam instead"

_FLOAT16 = ("16", "16-mixed", "16-true", "fp16", "float16", "half")


class SavesMemory(Section):
    """The keys of ``model`` by which NeMo-Aligner saves memory or computes in fewer bits."""

    sequence_parallel: bool = fixed(
        False,
        why=NO_SEQUENCE_PARALLEL,
        fix=f"{SMALLER_PASS}, or raise model.tensor_model_parallel_size where the step may",
    )
    # `selective` does not keep the products of queries and keys. Torch's fused attention never
    # does, so that it asks for what happens anyway.
    activations_checkpoint_granularity: str | None = fixed(
        None, "selective", why=NO_RECOMPUTE, fix=SMALLER_PASS
    )
    activations_checkpoint_method: Literal["uniform", "block"] | None = unused(
        None, description=_HOW_TO_RECOMPUTE
    )
    activations_checkpoint_num_layers: int | None = unused(None, description=_HOW_TO_RECOMPUTE)
    activations_checkpoint_layers_per_pipeline: int | None = unused(
        None, description=_HOW_TO_RECOMPUTE
    )
    gradient_accumulation_fusion: bool = fixed(False, why=NO_FUSION, fix="leave it false")
    cpu_offloading: bool = fixed(False, why=NO_OFFLOAD, fix=SMALLER_PASS)
    fp8: bool = fixed(False, why=NO_FP8, fix="set trainer.precision=bf16")


def refuse_float16(value: Any) -> Any:
    """``value``, unless it asks for float16, which needs a scale for its loss."""
    if value in _FLOAT16 or (value == 16 and type(value) is int):
        what = "not built: float16 needs a scale of the loss that follows the gradients"
        fix = "bfloat16 (bf16) takes as much memory and needs none; on a CPU take float32 (32)"
        raise ConfigError(Problem(what=what, got=str(value), fix=fix))
    return value
