"""What a training run leaves: the output ``model``, or the output ``adapter``."""

from __future__ import annotations

import math
from pathlib import Path

from torch import nn

from nemotron_style.runtime.step.context import Output, StepContext
from nemotron_style.steps.blocks.checkpoint.model_checkpoint import (
    full_shapes,
    save_model,
    written_digest,
)
from nemotron_style.steps.blocks.settings.model_config import ModelConfig
from nemotron_style.steps.blocks.training.trained_model import Adaptation


def product_of(adaptation: Adaptation | None) -> str:
    """The output of the run, by its slot."""
    return "adapter" if adaptation else "model"


def write_product(
    ctx: StepContext,
    model: nn.Module,
    adaptation: Adaptation | None,
    *,
    sizes: ModelConfig,
    tokenizer: Path,
) -> Output:
    """Write the weights, or the adapters, as they are now, with a copy of ``tokenizer``.

    Its record says which weights they are, and how many. Every rank calls it, and none comes
    back before all is written.
    """
    output = ctx.output(product_of(adaptation))
    if adaptation:
        adaptation.save(model, output.path, tokenizer=tokenizer)
        output.note(**adaptation.facts)
    else:
        save_model(model, output.path, config=sizes, tokenizer=tokenizer)
        output.note(
            weights_digest=written_digest(output.path),
            parameters=sum(math.prod(shape) for shape in full_shapes(sizes).values()),
        )
    return output
