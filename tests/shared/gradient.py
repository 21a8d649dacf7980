"""Gradients of a model that may be divided over processes."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from nemotron_style.steps.blocks.checkpoint.model_checkpoint import full_weights


def full_gradient(model: nn.Module) -> dict[str, Tensor]:
    """Every gradient whole, by the way that weights are gathered; the weights stay as they are."""
    kept = [parameter.detach().clone() for parameter in model.parameters()]
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.main_grad)
        found = {name: whole.clone() for name, whole in full_weights(model)}
        for parameter, weights in zip(model.parameters(), kept, strict=True):
            parameter.copy_(weights)
    return found
