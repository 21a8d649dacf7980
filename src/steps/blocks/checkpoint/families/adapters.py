"""Low-rank adapters of megatron's linear layers, and the same ones as peft has them.

An adapter adds ``scale * B @ A`` to the weights of its layer, ``A`` ``[rank, in]`` and ``B``
``[out, rank]``. Where Hugging Face has several layers for one of megatron's (queries, keys and
values; gate and up), each gets the same A and its rows of B. The way back is exact too: adapters
that share their A become one of the same rank; others, one of all their ranks together, whose B
has blocks of zeros.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from nemotron_style.steps.blocks.checkpoint.families.tensors import (
    export_tensor,
    full_shapes,
    hf_names,
    import_tensor,
)
from nemotron_style.steps.blocks.settings.model_config import ModelConfig

LINEAR_LAYERS = (
    "self_attention.linear_qkv",
    "self_attention.linear_proj",
    "mlp.linear_fc1",
    "mlp.linear_fc2",
)
_WEIGHT = ".weight"


class LayerAdapter(NamedTuple):
    """The adapter of one layer, ``lora_A`` ``[rank, in]`` and ``lora_B`` ``[out, rank]``."""

    lora_A: Tensor
    lora_B: Tensor
    scale: float

    @property
    def delta(self) -> Tensor:
        """What is added to the weights of the layer, ``[out, in]``, in float32."""
        return self.scale * (self.lora_B.float() @ self.lora_A.float())


def linear_layers(config: ModelConfig) -> dict[str, tuple[int, int]]:
    """megatron's names of all layers that may have an adapter, and their ``(out, in)``."""
    return {
        name.removesuffix(_WEIGHT): (shape[0], shape[1])
        for name, shape in full_shapes(config).items()
        if name.removesuffix(_WEIGHT).endswith(LINEAR_LAYERS) and name.endswith(_WEIGHT)
    }


def hf_modules(layer: str, config: ModelConfig) -> tuple[str, ...]:
    """Hugging Face's names of the modules that megatron's ``layer`` joins."""
    return tuple(name.removesuffix(_WEIGHT) for name in hf_names(layer + _WEIGHT, config))


def hf_shapes(layer: str, config: ModelConfig) -> dict[str, tuple[int, int]]:
    """``(out, in)`` of each of those modules."""
    empty = torch.empty(linear_layers(config)[layer], device="meta")
    parts = export_tensor(layer + _WEIGHT, empty, config)
    return {name.removesuffix(_WEIGHT): (len(part), part.shape[1]) for name, part in parts.items()}


def export_adapter(
    layer: str, lora_A: Tensor, lora_B: Tensor, config: ModelConfig
) -> dict[str, tuple[Tensor, Tensor]]:
    """A and B of each of Hugging Face's modules, by its name."""
    parts = export_tensor(layer + _WEIGHT, lora_B, config)
    return {name.removesuffix(_WEIGHT): (lora_A, part) for name, part in parts.items()}


def import_adapter(
    layer: str, parts: Mapping[str, LayerAdapter], config: ModelConfig
) -> LayerAdapter:
    """One adapter of megatron's ``layer`` from those of Hugging Face's modules, by their names.

    A module that has none gets rows of zeros.
    """
    scales = {part.scale for part in parts.values()}
    common = scales.pop() if len(scales) == 1 else None
    rows = {
        # different scales have to become a part of the numbers
        name: part.lora_B if common is not None else part.lora_B.float() * part.scale
        for name, part in parts.items()
    }
    first = next(iter(parts.values())).lora_A
    if all(torch.equal(part.lora_A, first) for part in parts.values()):
        whole, width = first, len(first)
    else:
        whole, width = torch.cat([part.lora_A for part in parts.values()]), 0
        total = len(whole)
        for name, own in rows.items():
            rows[name] = torch.nn.functional.pad(own, (width, total - width - own.shape[1]))
            width += own.shape[1]
    kind = next(iter(rows.values()))
    joined = [
        rows[name] if name in rows else kind.new_zeros(out, width)
        for name, (out, _) in hf_shapes(layer, config).items()
    ]
    scale = 1.0 if common is None else common
    return LayerAdapter(whole, import_tensor(layer + _WEIGHT, joined, config), scale)
