"""A model that is run while its weights stay in their files: one tensor is held at a time.

Each module reads its weights when it is called and drops them after. For one pass over a few rows
that is all that is needed of a model that may not fit into memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from nemotron_style.steps.blocks.checkpoint.torch_dist_stream import Read
from nemotron_style.steps.blocks.model.device import prepare_device
from nemotron_style.steps.blocks.model.language_model import LanguageModel, construct
from nemotron_style.steps.blocks.model.sharded_tensor import sharded_weights
from nemotron_style.steps.blocks.settings.model_config import ModelConfig

CHECKED_TYPE = torch.float64
"""What both sides of a check compute in. In float32 rounding alone makes 1e-4 of logits up to 34
after 30 layers, as much as a check allows."""


class WeightStream:
    """Gives the modules of a model their weights while they run, in :data:`CHECKED_TYPE`.

    ``read`` returns a weight by the name that the model has for it. The model's own are on the
    device ``meta``, where they take no memory.
    """

    def __init__(self, model: nn.Module, read: Read) -> None:
        self.read, self.device = read, prepare_device()
        self.names = {module: name for name, module in model.named_modules()}
        for module in model.modules():
            if any(weight is not None for weight in module._parameters.values()):
                module.register_forward_pre_hook(lambda module, _: self.fill(module))
                module.register_forward_hook(lambda module, *_: self.empty(module))

    def fill(self, module: nn.Module) -> None:
        """Read the weights of one module."""
        for key, weight in module._parameters.items():
            if weight is not None:
                name = f"{self.names[module]}.{key}"
                whole = self.read(name).to(self.device, CHECKED_TYPE)
                module._parameters[key] = nn.Parameter(whole, requires_grad=False)

    @staticmethod
    def empty(module: nn.Module) -> None:
        """Drop them."""
        for key, weight in module._parameters.items():
            if weight is not None:
                module._parameters[key] = nn.Parameter(weight.to("meta"), requires_grad=False)


class _StreamedModel(LanguageModel):
    """A model whose head, which is no call of a module, has its weights for its product alone."""

    stream: WeightStream

    def head(self, states: Tensor) -> Tensor:
        tied = self.share_embeddings_and_output_weights
        owner = self.embedding.word_embeddings if tied else self.output_layer
        self.stream.fill(owner)
        logits = super().head(states)
        self.stream.empty(owner)
        return logits


def stream_model(config: ModelConfig, read: Read) -> LanguageModel:
    """A model of these sizes; ``read`` returns its tensors by their canonical names."""
    with torch.device("meta"):
        model = construct(_StreamedModel, config, dtype=CHECKED_TYPE)
    names = {name: part.key for name, part in sharded_weights(model).items()}
    model.stream = WeightStream(model, lambda name: read(names[name]))
    return model


@contextmanager
def parameters_without_memory() -> Iterator[None]:
    """Have modules that are made here keep their parameters on ``meta``; buffers hold numbers.

    Rotary frequencies and the like are buffers, which no file has.
    """
    register = nn.Module.register_parameter

    def on_meta(module: nn.Module, name: str, weight: nn.Parameter | None) -> Any:
        if weight is not None:
            weight = nn.Parameter(weight.to("meta"), requires_grad=False)
        return register(module, name, weight)

    nn.Module.register_parameter = on_meta  # type: ignore[method-assign]
    try:
        yield
    finally:
        nn.Module.register_parameter = register  # type: ignore[method-assign]
