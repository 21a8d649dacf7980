"""The weights of a model that is held for training, by what they do in one step of decoding."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nemotron_style.steps.blocks.generation.packed_linear import (
    AdaptedLinear,
    PackedLinear,
    pack_linear,
)
from nemotron_style.steps.blocks.model.language_model import unwrap
from nemotron_style.steps.blocks.model.lora import adapted_layers, merged_weight
from nemotron_style.steps.blocks.model.norm import widen
from nemotron_style.steps.blocks.model.parallel import current_parallel
from nemotron_style.steps.blocks.model.sharded_tensor import whole_weights
from nemotron_style.steps.blocks.settings.model_config import ModelConfig

Norm = Callable[[Tensor], Tensor]
Linear = PackedLinear | AdaptedLinear


@dataclass(frozen=True)
class LayerWeights:
    """One transformer layer. A norm is None where the family has none in that place."""

    attention_norm: Norm | None
    qkv: Linear
    query_key_norm: Norm | None
    """Of ``[.., K, Q + 1, head size]``: the queries of each key-value head, and its key."""
    attention_out: Linear
    attention_out_norm: Norm | None
    mlp_norm: Norm | None
    fc1: Linear
    fc2: Linear
    mlp_out_norm: Norm | None
    window: int | None
    """Tokens that a token sees, itself among them; None: all."""


# Checkpoints name these norms after the products that follow them.
_NORMS = {
    "self_attention.linear_qkv.layer_norm_": "input_layernorm.",
    "mlp.linear_fc1.layer_norm_": "pre_mlp_layernorm.",
}


def whole_model(model: nn.Module) -> Any:
    """The model inside DDP, or, where ranks divide it, a copy of its weights as they are now.

    The copy has the model's own names down to ``weight`` and ``bias``, and all of its layers, with
    their adapters. Ranks give each other their slices for it, so every rank calls this.
    """
    own = unwrap(model)
    if current_parallel().model == 1:
        return own
    root = SimpleNamespace()
    for name, whole in chain(whole_weights(own), whole_weights(own, adapters=True)):
        for stored, module in _NORMS.items():
            name = name.replace(stored, module)
        *path, last = name.split(".")
        place = root
        for part in path:
            place = vars(place).setdefault(part, SimpleNamespace())
        setattr(place, last, whole)
        if last == "lora_A":
            place.lora = next(layer.lora for _, layer in adapted_layers(own))  # all are alike
    layers = vars(root.decoder.layers)
    root.decoder.layers = [layers[str(number)] for number in range(len(layers))]
    return root


class WeightReader:
    """Reads modules of a model; ``dtype`` None keeps their types, ``rows`` is that of a step."""

    def __init__(self, config: ModelConfig, *, dtype: torch.dtype | None, rows: int) -> None:
        self.config, self.dtype, self.rows = config, dtype, rows

    def layer(self, layer: Any, number: int) -> LayerWeights:
        """Layer ``number``, counted from 1."""
        return LayerWeights(
            attention_norm=self.norm(layer, "input_layernorm"),
            qkv=self.linear(layer.self_attention.linear_qkv),
            query_key_norm=self._query_key_norm(layer.self_attention),
            attention_out=self.linear(layer.self_attention.linear_proj),
            attention_out_norm=self.norm(layer, "post_self_attn_layernorm"),
            mlp_norm=self.norm(layer, "pre_mlp_layernorm"),
            fc1=self.linear(layer.mlp.linear_fc1),
            fc2=self.linear(layer.mlp.linear_fc2),
            mlp_out_norm=self.norm(layer, "post_mlp_layernorm"),
            window=self.config.window_of(number),
        )

    def linear(self, module: Any) -> Linear:
        """A product with a module's weight and, where it has them, its bias and its adapter.

        In float32 on a CPU, where large weights are copied anyway, the adapter is a part of that
        copy and costs no time after. Elsewhere it stays beside the weight: the sum would be a
        second copy, and 16 bits would round away what is learned in small steps.
        """
        bias = getattr(module, "bias", None)
        bias = None if bias is None else self.cast(bias)
        weight, lora = self.cast(module.weight), getattr(module, "lora", None)
        is_adapted = lora is not None and lora.active
        is_copied = weight.device.type == "cpu" and weight.dtype == torch.float32
        if is_adapted and is_copied:
            weight = self.cast(merged_weight(module))
        product = pack_linear(weight, bias, rows=self.rows)
        if not is_adapted or is_copied:
            return product
        lora_A, lora_B = self.cast(module.lora_A), self.cast(module.lora_B)
        return AdaptedLinear(product, lora_A, lora_B, lora.scale)

    def norm(self, parent: nn.Module, name: str) -> Norm | None:
        """The norm called ``name``; None where there is none, or one without weights."""
        module = getattr(parent, name, None)
        weight = getattr(module, "weight", None)
        if weight is None:
            return None
        shape, epsilon = weight.shape, self.config.norm_epsilon
        if self.config.normalization == "layernorm":
            gain, bias = self.cast(self._gain(weight)), self.cast(module.bias)
            return lambda states: F.layer_norm(states, shape, gain, bias, epsilon)
        if not self.config.zero_centered_gamma:
            gain = self.cast(weight)
            return lambda states: F.rms_norm(states, shape, gain, epsilon)
        gain = widen(self._gain(weight))
        return lambda states: F.rms_norm(widen(states), shape, gain, epsilon).to(states.dtype)

    def cast(self, weight: Tensor) -> Tensor:
        """A weight in the type that is decoded in."""
        weight = weight.detach()
        return weight.to(self.dtype or weight.dtype)

    def _gain(self, weight: Tensor) -> Tensor:
        return widen(weight.detach()) + 1 if self.config.zero_centered_gamma else weight

    def _query_key_norm(self, attention: nn.Module) -> Norm | None:
        if self.config.qk_norm == "none":
            return None
        epsilon, groups = self.config.norm_epsilon, self.config.num_query_groups
        queries = self.config.num_attention_heads // groups
        norms = (attention.q_layernorm, attention.k_layernorm)
        query, key = (widen(self._gain(module.weight)) for module in norms)
        if self.config.qk_norm == "head":
            gain = torch.stack([query] * queries + [key])

            def over_each_head(heads: Tensor) -> Tensor:
                return (F.rms_norm(widen(heads), key.shape, None, epsilon) * gain).to(heads.dtype)

            return over_each_head

        def over_all_heads(heads: Tensor) -> Tensor:
            parts = zip(heads.split([queries, 1], dim=-2), (query, key), strict=True)
            normed = [
                F.rms_norm(widen(part).flatten(-3), gain.shape, gain, epsilon).view(part.shape)
                for part, gain in parts
            ]
            return torch.cat(normed, dim=-2).to(heads.dtype)

        return over_all_heads
