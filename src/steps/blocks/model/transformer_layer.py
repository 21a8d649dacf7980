"""The layers of the model: megatron-core's modules and weights, with shorter ways through them.

megatron-core's own forward methods serve many more models than this one, and for a small model
what they check and copy on the way costs more than a tenth of a training step. Weights, names,
divisions and checkpoints are untouched.
"""

from __future__ import annotations

import torch.nn.functional as F
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
from megatron.core.tensor_parallel.layers import ColumnParallelLinear, RowParallelLinear
from megatron.core.transformer.attention import SelfAttention
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_layer import TransformerLayer
from torch import Tensor

from nemotron_style.steps.blocks.model.attention import AttentionContext, CoreAttention


def layer_spec() -> ModuleSpec:
    """megatron-core's local layer of RMSNorms, attention and MLP, made of the modules below."""
    spec = get_gpt_layer_local_spec(normalization="RMSNorm")
    spec.module = Layer
    attention, mlp = spec.submodules.self_attention, spec.submodules.mlp
    attention.module = Attention
    attention.submodules.core_attention = CoreAttention
    attention.submodules.linear_qkv = mlp.submodules.linear_fc1 = ColumnLinear
    attention.submodules.linear_proj = mlp.submodules.linear_fc2 = RowLinear
    return spec


class Layer(TransformerLayer):
    """Attention and gated MLP, each after a norm and beside a residual stream."""

    def forward(
        self, hidden_states: Tensor, *, packed_seq_params: AttentionContext, **_unused: object
    ) -> tuple[Tensor, None]:
        """``[S, B, hidden]`` to the same shape."""
        mixed, _ = self.self_attention(self.input_layernorm(hidden_states), packed_seq_params)
        hidden_states = hidden_states + mixed
        gate_up, _ = self.mlp.linear_fc1(self.pre_mlp_layernorm(hidden_states))
        gate, up = gate_up.chunk(2, dim=-1)
        changed, _ = self.mlp.linear_fc2(F.silu(gate) * up)
        return hidden_states + changed, None


class Attention(SelfAttention):
    """Queries, keys and values from one product; rotary positions and mask from the context."""

    def forward(self, hidden_states: Tensor, context: AttentionContext) -> tuple[Tensor, None]:
        """``[S, B, hidden]`` to the same shape."""
        product, _ = self.linear_qkv(hidden_states)
        size = self.hidden_size_per_attention_head
        groups = self.num_query_groups_per_partition
        # per query group: its queries, one key, one value
        by_group = product.unflatten(-1, (groups, -1, size))
        heads = by_group.shape[3] - 2
        query, key, value = by_group.split([heads, 1, 1], dim=3)
        return self.linear_proj(self.core_attention(query, key, value, context))


class ColumnLinear(ColumnParallelLinear):
    """A product whose output features are divided over tensor ranks."""

    def forward(self, input_: Tensor, *args: object, **kwargs: object) -> tuple[Tensor, None]:
        """``[.., in]`` to ``[.., out / tensor ranks]``."""
        if self.tp_group.size() > 1:
            return super().forward(input_, *args, **kwargs)
        return F.linear(input_, self.weight), None


class RowLinear(RowParallelLinear):
    """A product whose input features are divided over tensor ranks."""

    def forward(self, input_: Tensor) -> tuple[Tensor, None]:
        """``[.., in / tensor ranks]`` to ``[.., out]``."""
        if self.tp_group.size() > 1:
            return super().forward(input_)
        return F.linear(input_, self.weight), None
