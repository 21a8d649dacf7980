"""The layers of the model: megatron-core's modules and weights, with shorter ways through them.

megatron-core's own forward methods serve many more models than this one, and for a small model
what they check and copy on the way costs more than a tenth of a training step. Weights, names,
divisions and checkpoints are untouched.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
from megatron.core.tensor_parallel.layers import ColumnParallelLinear, RowParallelLinear
from megatron.core.transformer.attention import SelfAttention
from megatron.core.transformer.identity_op import IdentityOp
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules
from megatron.core.transformer.transformer_layer import TransformerLayer
from torch import Tensor, nn

from nemotron_style.steps.blocks.model.attention import AttentionContext, CoreAttention
from nemotron_style.steps.blocks.model.linear import linear
from nemotron_style.steps.blocks.model.lora import ColumnAdapter, RowAdapter
from nemotron_style.steps.blocks.model.megatron_config import MegatronConfig
from nemotron_style.steps.blocks.model.norm import FullNorm, Norm


def swiglu(product: Tensor) -> Tensor:
    """``silu(gate) * up`` of ``[gate, up]`` along the last dimension."""
    gate, up = product.chunk(2, dim=-1)
    return F.silu(gate) * up


def geglu(product: Tensor) -> Tensor:
    """``gelu(gate) * up``, GELU by its approximation with tanh."""
    gate, up = product.chunk(2, dim=-1)
    return F.gelu(gate, approximate="tanh") * up


def squared_relu(product: Tensor) -> Tensor:
    """``relu(up) ** 2`` (So et al., 2021, arXiv 2109.08668)."""
    return F.relu(product).square()


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "swiglu": swiglu,
    "geglu": geglu,
    "squared_relu": squared_relu,
}


def block_spec(config: MegatronConfig, *, layers: int) -> TransformerBlockSubmodules:
    """A pipeline stage of ``layers`` layers, and the last norm, made of the modules below."""
    spec = get_gpt_layer_local_spec(normalization="RMSNorm")
    spec.module = Layer
    attention, mlp = spec.submodules.self_attention, spec.submodules.mlp
    attention.module = Attention
    attention.submodules.core_attention = CoreAttention
    attention.submodules.linear_qkv = mlp.submodules.linear_fc1 = ColumnLinear
    attention.submodules.linear_proj = mlp.submodules.linear_fc2 = RowLinear
    own = Norm if config.model.qk_norm == "head" else None
    attention.submodules.q_layernorm = attention.submodules.k_layernorm = own
    before = IdentityOp if config.model.norm_placement == "post" else Norm
    spec.submodules.input_layernorm = spec.submodules.pre_mlp_layernorm = before
    return TransformerBlockSubmodules(layer_specs=[spec] * layers, layer_norm=Norm)


class Layer(TransformerLayer):
    """Attention and MLP beside a residual stream, with norms before them, on their output or both.

    ``post_self_attn_layernorm`` and ``post_mlp_layernorm`` are those on the output, or None.
    """

    def __init__(self, config: MegatronConfig, *args: Any, **kwargs: Any) -> None:
        super().__init__(config, *args, **kwargs)
        self.activate = ACTIVATIONS[config.model.activation]
        self.has_post_norms = config.model.norm_placement != "pre"
        after = [_norm(config) if self.has_post_norms else None for _ in range(2)]
        self.post_self_attn_layernorm, self.post_mlp_layernorm = after

    def forward(
        self, hidden_states: Tensor, *, packed_seq_params: AttentionContext, **_unused: object
    ) -> tuple[Tensor, None]:
        """``[S, B, hidden]`` to the same shape."""
        mixed, _ = self.self_attention(self.input_layernorm(hidden_states), packed_seq_params)
        if self.has_post_norms:
            mixed = self.post_self_attn_layernorm(mixed)
        hidden_states = hidden_states + mixed
        product, _ = self.mlp.linear_fc1(self.pre_mlp_layernorm(hidden_states))
        changed, _ = self.mlp.linear_fc2(self.activate(product))
        if self.has_post_norms:
            changed = self.post_mlp_layernorm(changed)
        return hidden_states + changed, None


class Attention(SelfAttention):
    """Queries, keys and values from one product; rotary positions and mask from the context.

    ``q_layernorm`` and ``k_layernorm`` are norms of each head or of all together, or None.
    """

    def __init__(self, config: MegatronConfig, *args: Any, **kwargs: Any) -> None:
        super().__init__(config, *args, **kwargs)
        model = config.model
        if model.qk_norm == "full":
            group = self.pg_collection.tp
            counts = (model.num_attention_heads, model.num_query_groups)
            self.q_layernorm, self.k_layernorm = (
                FullNorm(heads, model.head_size, eps=model.norm_epsilon, tp_group=group)
                for heads in counts
            )

    def forward(self, hidden_states: Tensor, context: AttentionContext) -> tuple[Tensor, None]:
        """``[S, B, hidden]`` to the same shape."""
        product, _ = self.linear_qkv(hidden_states)
        length, width = product.shape[0], context.width
        if length > width:  # sequence parallelism has added tokens
            product = product[:width]
        size = self.hidden_size_per_attention_head
        groups = self.num_query_groups_per_partition
        # per query group: its queries, one key, one value
        by_group = product.unflatten(-1, (groups, -1, size))
        heads = by_group.shape[3] - 2
        query, key, value = by_group.split([heads, 1, 1], dim=3)
        if self.q_layernorm is not None:
            query, key = self.q_layernorm(query), self.k_layernorm(key)
        mixed = self.core_attention(query, key, value, context)
        if length > width:
            mixed = F.pad(mixed, (0, 0, 0, 0, 0, length - width))
        return self.linear_proj(mixed)


def _norm(config: MegatronConfig) -> nn.Module:
    return Norm(config, config.hidden_size, config.layernorm_epsilon)


class ColumnLinear(ColumnAdapter, ColumnParallelLinear):
    """A product whose output features are divided over tensor ranks."""

    def forward(self, input_: Tensor, *args: object, **kwargs: object) -> tuple[Tensor, None]:
        """``[.., in]`` to ``[.., out / tensor ranks]``."""
        if self.tp_group.size() > 1:
            product, _ = super().forward(input_, *args, **kwargs)
        else:
            product = linear(input_, self.weight, self.bias)
        return self.adapted(product, input_), None


class RowLinear(RowAdapter, RowParallelLinear):
    """A product whose input features are divided over tensor ranks."""

    def forward(self, input_: Tensor) -> tuple[Tensor, None]:
        """``[.., in / tensor ranks]`` to ``[.., out]``."""
        if self.tp_group.size() > 1:
            product, _ = super().forward(input_)
        else:
            product = linear(input_, self.weight)
        return self.adapted(product, input_), None
