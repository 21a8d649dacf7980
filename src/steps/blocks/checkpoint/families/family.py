"""What the table says of a family: classes, keys of ``config.json``, switches, names of tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

Names = Mapping[str, tuple[str, ...]]

LLAMA_KEYS: Mapping[str, tuple[str, Any]] = {
    "max_sequence_length": ("max_position_embeddings", 2048),
    "norm_epsilon": ("rms_norm_eps", 1e-6),
    "tie_embeddings": ("tie_word_embeddings", False),
    "num_query_groups": ("num_key_value_heads", None),
    "kv_channels": ("head_dim", None),
}
LLAMA_TENSORS: Names = {
    "self_attention.linear_qkv.layer_norm_weight": ("input_layernorm.weight",),
    "self_attention.linear_qkv.layer_norm_bias": ("input_layernorm.bias",),
    "self_attention.linear_qkv.weight": (
        "self_attn.q_proj.weight",
        "self_attn.k_proj.weight",
        "self_attn.v_proj.weight",
    ),
    "self_attention.linear_qkv.bias": (
        "self_attn.q_proj.bias",
        "self_attn.k_proj.bias",
        "self_attn.v_proj.bias",
    ),
    "self_attention.q_layernorm.weight": ("self_attn.q_norm.weight",),
    "self_attention.k_layernorm.weight": ("self_attn.k_norm.weight",),
    "self_attention.linear_proj.weight": ("self_attn.o_proj.weight",),
    "mlp.linear_fc1.layer_norm_weight": ("post_attention_layernorm.weight",),
    "mlp.linear_fc1.layer_norm_bias": ("post_attention_layernorm.bias",),
    "mlp.linear_fc1.weight": ("mlp.gate_proj.weight", "mlp.up_proj.weight"),
    "mlp.linear_fc2.weight": ("mlp.down_proj.weight",),
}
SILU: Mapping[str, tuple[Any, ...]] = {"hidden_act": ("silu", "swish")}
NO_BIAS: Mapping[str, tuple[Any, ...]] = {"attention_bias": (False,)}


@dataclass(frozen=True)
class Family:
    """One family; the defaults are those of a Llama.

    ``architecture`` is its name in ``model_config.json``, ``model_type`` that in ``config.json``,
    and ``name`` begins the names of transformers' classes, but for those in ``classes``.

    ``switches`` are those of :class:`ModelConfig` that all of its models have. ``keys`` says
    under which key ``config.json`` holds a field of ModelConfig, and what it means to transformers
    when the key is absent; ``says`` which values other keys may have, the first of which is
    written. ``tensors`` gives Hugging Face's names of the parts of megatron-core's tensors, where
    they differ from a Llama's; one name for several parts means that they are joined there.
    """

    architecture: str
    model_type: str
    name: str
    classes: Mapping[str, str] = field(default_factory=dict)
    switches: Mapping[str, Any] = field(default_factory=dict)
    keys: Mapping[str, tuple[str, Any]] = field(default_factory=dict)
    says: Mapping[str, tuple[Any, ...]] = field(default_factory=lambda: {**SILU, **NO_BIAS})
    tensors: Names = field(default_factory=dict)
    rope_theta: float = 10000.0
    rope_types: tuple[str, ...] = ("linear", "llama3", "yarn")
    local_rope_theta: float | None = None
    """The base in layers with a window when it is absent; None: the family has one base."""
    full_attention_every: int = 0
    """Which layers have no window, where ``config.json`` does not list ``layer_types``."""
    lists_layer_types: bool = False
    windows_are_optional: bool = False
    """Whether ``use_sliding_window`` and ``max_window_layers`` say if and where windows are."""
    scales_queries: bool = False
    """Whether the scale of the softmax is ``query_pre_attn_scalar ** -0.5``."""
    scales_embeddings: bool = False
    """Whether embeddings are multiplied by ``hidden_size ** 0.5``."""

    @property
    def causal_class(self) -> str:
        """transformers' class of the language model."""
        return self.classes.get("causal", f"{self.name}ForCausalLM")

    @property
    def scoring_class(self) -> str:
        """transformers' class of the model with a head for scoring."""
        return self.classes.get("scoring", f"{self.name}ForSequenceClassification")

    @property
    def config_class(self) -> str:
        """transformers' class of the config."""
        return self.classes.get("config", f"{self.name}Config")

    @property
    def all_keys(self) -> Mapping[str, tuple[str, Any]]:
        """``keys``, with those of a Llama."""
        return {**LLAMA_KEYS, **self.keys}

    def names_of(self, tensor: str) -> tuple[str, ...]:
        """Hugging Face's names, within a layer, of the parts of a tensor of megatron-core."""
        return self.tensors.get(tensor) or LLAMA_TENSORS[tensor]
