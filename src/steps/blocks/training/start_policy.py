"""The model that a run starts from, to which the trained one is compared: the reference policy.

Where all weights are trained it is a second copy of them. Where adapters are, it is the trained
model itself without them, so that there is one copy of the weights.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from nemotron_style.runtime.step.context import StepContext
from nemotron_style.steps.blocks.checkpoint.model_checkpoint import load_model
from nemotron_style.steps.blocks.model.lora import adapted_layers, adapters_off
from nemotron_style.steps.blocks.training.trained_model import Adaptation


@dataclass(frozen=True)
class StartPolicy:
    """Either a ``copy`` of the start, or the ``trained`` model, whose ``adapters`` are put back.

    ``adapters`` are A and B of each layer as they were at the start; None where they added nothing.
    """

    trained: nn.Module
    copy: nn.Module | None = None
    adapters: Sequence[Tensor] | None = None

    @staticmethod
    def of(
        ctx: StepContext, model: nn.Module, adaptation: Adaptation | None, *, dtype: torch.dtype
    ) -> StartPolicy:
        """That of the input ``model``; called before training, or a restored state, changes it."""
        if adaptation is None:
            copy, _ = load_model(ctx.input("model").path, dtype=dtype, ddp=False)
            return StartPolicy(model, copy=copy)
        starts = (adaptation.lora.column_init_method, adaptation.lora.row_init_method)
        adds_nothing = adaptation.given is None and "zero" in starts
        return StartPolicy(model, adapters=None if adds_nothing else _clone(model))

    @contextmanager
    def use(self) -> Iterator[nn.Module]:
        """Within, the model that comes computes what the run started from."""
        if self.copy is not None:
            yield self.copy
        elif self.adapters is None:
            with adapters_off(self.trained):
                yield self.trained
        else:
            now = _clone(self.trained)
            _put(self.trained, self.adapters)
            try:
                yield self.trained
            finally:
                _put(self.trained, now)


def _factors(model: nn.Module) -> list[Tensor]:
    layers = adapted_layers(model)
    return [part.detach() for _, layer in layers for part in (layer.lora_A, layer.lora_B)]


def _clone(model: nn.Module) -> list[Tensor]:
    return [part.clone() for part in _factors(model)]


def _put(model: nn.Module, values: Sequence[Tensor]) -> None:
    for part, value in zip(_factors(model), values, strict=True):
        part.copy_(value)
