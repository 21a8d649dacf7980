"""Gradients of a model that may be divided over processes."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from nemotron_style.steps.blocks.checkpoint.model_checkpoint import full_weights
from nemotron_style.steps.blocks.model.lora import has_adapters


def full_gradient(model: nn.Module) -> dict[str, Tensor]:
    """Every gradient whole, by the way that weights are gathered; the weights stay as they are."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    kept = [parameter.detach().clone() for parameter in trained]
    with torch.no_grad():
        for parameter in trained:
            parameter.copy_(parameter.main_grad)
        whole = full_weights(model, adapters=has_adapters(model))
        found = {name: value.clone() for name, value in whole}
        for parameter, weights in zip(trained, kept, strict=True):
            parameter.copy_(weights)
    return found
