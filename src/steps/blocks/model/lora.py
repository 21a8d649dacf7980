"""Low-rank adapters in the model's linear layers (LoRA, Hu et al., 2021, arXiv 2106.09685).

A layer with the frozen weight W computes ``W x + scale * B A x``: A is ``[dim, in]`` and B is
``[out, dim]``, of the type of W. Of what tensor ranks divide, each holds its slice:

* column-parallel: B is divided as W is. A is whole on every rank, and the gradient that reaches
  it is summed over the ranks, each of which sees the outputs of its slice;
* row-parallel: A is divided as W is. B is whole, and is given the sum of the ranks' ``A x``.

With sequence parallelism what is whole sees the tokens of its rank, and says so to megatron-core
(``sequence_parallel``), which sums its gradient.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from megatron.core.tensor_parallel.layers import set_tensor_model_parallel_attributes
from megatron.core.tensor_parallel.mappings import (
    copy_to_tensor_model_parallel_region,
    gather_from_sequence_parallel_region,
    reduce_from_tensor_model_parallel_region,
    reduce_scatter_to_sequence_parallel_region,
)
from megatron.core.transformer.mlp import apply_swiglu_sharded_factory
from megatron.core.transformer.utils import make_sharded_tensors_for_checkpoint
from torch import Tensor, nn

from nemotron_style.steps.blocks.model.sharded_tensor import ADAPTER, name_generator, shards
from nemotron_style.steps.blocks.settings.peft_config import LoraTuning


@dataclass
class Adapter:
    """How a linear layer uses its ``lora_A`` and ``lora_B``; ``has_gate``: B has two halves."""

    scale: float
    dropout: float
    has_gate: bool
    active: bool = True


class Adaptable:
    """What a parallel linear layer inherits to have an adapter; without one it is as it was.

    ``lora_axes`` are the dimensions along which tensor ranks divide A and B.
    """

    lora: Adapter | None = None
    lora_axes: ClassVar[dict[str, int]]
    weight: nn.Parameter
    lora_A: nn.Parameter
    lora_B: nn.Parameter
    tp_group: Any
    sequence_parallel: bool
    training: bool

    def add_adapter(self, settings: LoraTuning, *, has_gate: bool) -> None:
        """Give the layer an empty adapter for its slice of the weight."""
        assert self.lora is None, "the layer has an adapter already"
        self.lora = Adapter(settings.scale, settings.adapter_dropout, has_gate)
        rows, columns = self.weight.shape
        shapes = {"lora_A": (settings.adapter_dim, columns), "lora_B": (rows, settings.adapter_dim)}
        for name, shape in shapes.items():
            parameter = nn.Parameter(self.weight.new_empty(shape))
            setattr(self, name, parameter)
            if name in self.lora_axes:
                axis = self.lora_axes[name]
                set_tensor_model_parallel_attributes(parameter, True, axis, 2 if has_gate else 1)
            else:
                parameter.sequence_parallel = self.sequence_parallel

    def drop(self, states: Tensor, *, divided: int | None) -> Tensor:
        """``states`` with some of them 0, while training; ``divided``: as their ranks divide them.

        Each rank draws for all of them and takes its part, so that tensor ranks, whose random
        numbers are alike, drop what one process would.
        """
        share = self.lora.dropout if self.lora else 0.0
        if not share or not self.training:
            return states
        shape, group = list(states.shape), self.tp_group
        if divided is not None:
            shape[divided] *= group.size()
        kept = states.new_empty(shape).bernoulli_(1 - share).div_(1 - share)
        if divided is not None:
            kept = kept.chunk(group.size(), dim=divided)[group.rank()]
        return states * kept

    def sharded_state_dict(
        self, prefix: str = "", sharded_offsets: tuple[Any, ...] = (), metadata: Any = None
    ) -> dict[str, Any]:
        """megatron-core's description of the slices: those of the weight, and of A and B."""
        described: dict[str, Any] = super().sharded_state_dict(  # type: ignore[misc]
            prefix, sharded_offsets, metadata
        )
        if self.lora is None:
            return described
        described |= make_sharded_tensors_for_checkpoint(
            {"lora_A": self.lora_A, "lora_B": self.lora_B},
            prefix,
            self.lora_axes,
            sharded_offsets,
            tp_group=self.tp_group,
            dp_cp_group=metadata["dp_cp_group"],
        )
        if self.lora.has_gate:  # a rank holds its part of each half, as it does of the weight
            name = f"{prefix}lora_B"
            described[name] = apply_swiglu_sharded_factory(described[name], sharded_offsets)
        return described


class ColumnAdapter(Adaptable):
    """The adapter of a layer whose outputs are divided over tensor ranks."""

    lora_axes: ClassVar[dict[str, int]] = {"lora_B": 0}

    def adapted(self, product: Tensor, states: Tensor) -> Tensor:
        """``product [.., out / ranks]`` and what the adapter adds to it for ``states [.., in]``."""
        if self.lora is None or not self.lora.active:
            return product
        divided = 0 if self.sequence_parallel else None
        small = F.linear(self.drop(states, divided=divided), self.lora_A) * self.lora.scale
        if self.sequence_parallel:
            small = gather_from_sequence_parallel_region(small, group=self.tp_group)
        elif self.tp_group.size() > 1:
            small = copy_to_tensor_model_parallel_region(small, self.tp_group)
        return product + F.linear(small, self.lora_B)


class RowAdapter(Adaptable):
    """The adapter of a layer whose inputs are divided over tensor ranks."""

    lora_axes: ClassVar[dict[str, int]] = {"lora_A": 1}

    def adapted(self, product: Tensor, states: Tensor) -> Tensor:
        """``product [.., out]`` and what the adapter adds to it for ``states [.., in / ranks]``."""
        if self.lora is None or not self.lora.active:
            return product
        small = F.linear(self.drop(states, divided=-1), self.lora_A) * self.lora.scale
        if self.sequence_parallel:
            small = reduce_scatter_to_sequence_parallel_region(small, group=self.tp_group)
        elif self.tp_group.size() > 1:
            small = reduce_from_tensor_model_parallel_region(small, self.tp_group)
        return product + F.linear(small, self.lora_B)


def apply_lora(model: nn.Module, settings: LoraTuning, *, seed: int) -> None:
    """Freeze ``model`` and give the linear layers that ``settings`` names adapters that train.

    It comes before DDP. A and B are drawn from ``seed`` and their names, so they are the same for
    every division of the model.
    """
    model.requires_grad_(False)
    for name, module in model.named_modules():
        if isinstance(module, Adaptable) and name.endswith(settings.modules):
            is_gated = name.endswith("linear_fc1") and model.config.model.is_gated
            module.add_adapter(settings, has_gate=is_gated)
    initialise_adapters(model, settings, seed=seed)


@torch.no_grad()
def initialise_adapters(model: nn.Module, settings: LoraTuning, *, seed: int) -> None:
    """Draw every A by ``column_init_method`` and every B by ``row_init_method``, as NeMo does."""
    methods = {"lora_A": settings.column_init_method, "lora_B": settings.row_init_method}
    for shard in shards(model, adapters=True):
        method = methods[shard.name.rpartition(".")[2]]
        generator = name_generator(seed, shard.name)
        fan_out, fan_in = shard.full_shape
        whole = torch.zeros(shard.full_shape)
        if method == "xavier":
            whole.normal_(0.0, math.sqrt(2 / (fan_in + fan_out)), generator=generator)
        elif method == "normal":
            whole.normal_(0.0, 0.2, generator=generator)
        elif method == "kaiming":
            bound = math.sqrt(1 / fan_in)  # He's for the slope sqrt(5): as torch's Linear
            whole.uniform_(-bound, bound, generator=generator)
        shard.data.copy_(whole[shard.slices])


@torch.no_grad()
def load_adapters(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Take over whole tensors by name, as ``full_weights(model, adapters=True)`` gives them."""
    for shard in shards(model, adapters=True):
        shard.data.copy_(tensors[shard.name][shard.slices])


def adapted_layers(model: nn.Module) -> Iterator[tuple[str, Adaptable]]:
    """The linear layers of this rank that have adapters, by their names within ``model``."""
    for name, module in model.named_modules():
        if isinstance(module, Adaptable) and module.lora is not None:
            yield name, module


def has_adapters(model: nn.Module) -> bool:
    """Whether ``model`` is frozen but for adapters."""
    return any(ADAPTER.search(name) for name, _ in model.named_parameters())


@contextmanager
def adapters_off(model: nn.Module) -> Iterator[None]:
    """Within, ``model`` computes what it did without its adapters: the start of the training."""
    states = [module.lora for _, module in adapted_layers(model) if module.lora]
    before = [state.active for state in states]
    for state in states:
        state.active = False
    try:
        yield
    finally:
        for state, active in zip(states, before, strict=True):
            state.active = active


@torch.no_grad()
def lora_delta(module: Adaptable) -> Tensor:
    """``scale * B A`` of a layer, of the shape of this rank's slice of its weight."""
    assert module.lora is not None
    return module.lora_B @ module.lora_A * module.lora.scale


@torch.no_grad()
def merged_weight(module: Any) -> Tensor:
    """The weight of a layer with its adapter in it, summed in float32 and rounded once."""
    factors = (part.float() for part in (module.weight, module.lora_B, module.lora_A))
    return torch.addmm(*factors, alpha=module.lora.scale).to(module.weight.dtype)
