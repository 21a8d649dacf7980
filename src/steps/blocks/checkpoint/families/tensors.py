"""The tensors of a model: names and shapes, and the same ones as Hugging Face holds them.

megatron-core keeps what is multiplied together in one tensor; Hugging Face keeps it apart:

* ``linear_qkv`` holds, for each query group in turn, the queries of the group, its key and its
  value; ``q_proj``, ``k_proj`` and ``v_proj`` hold all heads of one sort, in the same order;
* ``linear_fc1`` is ``gate_proj`` above ``up_proj``, in families that have a gate.

Phi 3 joins queries, keys and values in one tensor too, all heads of one sort after the other.

Both sides rotate the pair ``(x_i, x_{i + half})`` of a head by the same angle, so no row within a
head moves. Nothing here computes: rows are cut, put in another order and joined, whatever their
type. Names on megatron's side are those of :func:`full_shapes`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from nemotron_style.steps.blocks.checkpoint.families.table import BY_ARCHITECTURE
from nemotron_style.steps.blocks.settings.model_config import ModelConfig

EMBEDDING, HEAD = "embedding.word_embeddings.weight", "output_layer.weight"

_QKV, _GATE_UP = "self_attention.linear_qkv.", "mlp.linear_fc1.weight"
_LAYER = "decoder.layers."
_OF_THE_MODEL = {
    EMBEDDING: ("model.embed_tokens.weight",),
    "decoder.final_layernorm.weight": ("model.norm.weight",),
    "decoder.final_layernorm.bias": ("model.norm.bias",),
    HEAD: ("lm_head.weight",),
}


def hf_names(name: str, config: ModelConfig) -> tuple[str, ...]:
    """Hugging Face's names of the parts of megatron's tensor ``name``."""
    if not name.startswith(_LAYER):
        return _OF_THE_MODEL[name]
    number, _, rest = name.removeprefix(_LAYER).partition(".")
    parts = BY_ARCHITECTURE[config.architecture].names_of(rest)
    return tuple(f"model.layers.{number}.{part}" for part in parts)


def export_tensor(name: str, whole: Tensor, config: ModelConfig) -> dict[str, Tensor]:
    """megatron's tensor ``name`` as Hugging Face holds it: contiguous tensors by name."""
    names, parts = hf_names(name, config), [whole]
    if _is_qkv(name):
        groups, size = config.num_query_groups, config.head_size
        queries = config.num_attention_heads // groups
        by_group = whole.unflatten(0, (groups, queries + 2, size))
        parts = [part.flatten(0, 2) for part in by_group.split([queries, 1, 1], dim=1)]
    elif name.endswith(_GATE_UP) and config.is_gated:
        parts = list(whole.chunk(2))
    if len(names) < len(parts):
        parts = [torch.cat(parts)]
    return {key: part.contiguous() for key, part in zip(names, parts, strict=True)}


def import_tensor(name: str, parts: Sequence[Tensor], config: ModelConfig) -> Tensor:
    """The inverse of :func:`export_tensor`: ``parts`` in the order of :func:`hf_names`."""
    if not _is_qkv(name):
        return torch.cat(list(parts)) if len(parts) > 1 else parts[0]
    groups, size = config.num_query_groups, config.head_size
    if len(parts) == 1:
        rows = [heads * size for heads in (config.num_attention_heads, groups, groups)]
        parts = parts[0].split(rows)
    shape = (groups, -1, size)
    return torch.cat([part.unflatten(0, shape) for part in parts], dim=1).flatten(0, 2)


def _is_qkv(name: str) -> bool:
    return _QKV in name and not name.rpartition(".")[2].startswith("layer_norm")


def expected_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a model of these sizes on Hugging Face's side."""
    empty = ((name, torch.empty(s, device="meta")) for name, s in full_shapes(config).items())
    units = (export_tensor(name, whole, config) for name, whole in empty)
    return {name: tuple(part.shape) for unit in units for name, part in unit.items()}


def full_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Names and full shapes of all weights of a model of these sizes."""
    hidden, vocab = config.hidden_size, config.vocab_size
    shapes = {"embedding.word_embeddings.weight": (vocab, hidden)}
    shapes |= _norm_shapes("decoder.final_layernorm.", config)
    if not config.tie_embeddings:
        shapes["output_layer.weight"] = (vocab, hidden)
    for layer in range(config.num_layers):
        prefix = f"decoder.layers.{layer}."
        shapes |= {prefix + name: shape for name, shape in _layer_shapes(config).items()}
    return shapes


def _layer_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    hidden, wide, size = config.hidden_size, config.ffn_hidden_size, config.head_size
    heads, groups = config.num_attention_heads, config.num_query_groups
    products = (heads + 2 * groups) * size
    shapes: dict[str, tuple[int, ...]] = {}
    if config.norm_placement != "post":
        shapes |= _norm_shapes("self_attention.linear_qkv.layer_norm_", config)
    shapes["self_attention.linear_qkv.weight"] = (products, hidden)
    if config.qkv_bias:
        shapes["self_attention.linear_qkv.bias"] = (products,)
    if config.qk_norm != "none":
        full = config.qk_norm == "full"
        shapes["self_attention.q_layernorm.weight"] = (size * heads if full else size,)
        shapes["self_attention.k_layernorm.weight"] = (size * groups if full else size,)
    shapes["self_attention.linear_proj.weight"] = (hidden, heads * size)
    if config.norm_placement != "pre":
        shapes |= _norm_shapes("post_self_attn_layernorm.", config)
    if config.norm_placement != "post":
        shapes |= _norm_shapes("mlp.linear_fc1.layer_norm_", config)
    shapes["mlp.linear_fc1.weight"] = (2 * wide if config.is_gated else wide, hidden)
    shapes["mlp.linear_fc2.weight"] = (hidden, wide)
    if config.norm_placement != "pre":
        shapes |= _norm_shapes("post_mlp_layernorm.", config)
    return shapes


def _norm_shapes(prefix: str, config: ModelConfig) -> dict[str, tuple[int, ...]]:
    parts = ("weight", "bias") if config.normalization == "layernorm" else ("weight",)
    return {prefix + part: (config.hidden_size,) for part in parts}
