"""The weights of a Llama under Hugging Face's names and back, bit for bit.

megatron-core keeps what is multiplied together in one tensor; Hugging Face keeps it apart:

* ``linear_qkv`` holds, for each query group in turn, the queries of the group, its key and its
  value; ``q_proj``, ``k_proj`` and ``v_proj`` hold all heads of one sort, in the same order;
* ``linear_fc1`` is ``gate_proj`` above ``up_proj``.

Both sides rotate the pair ``(x_i, x_{i + half})`` of a head by the same angle, so no row within a
head moves. Nothing here computes: rows are cut, put in another order and joined, whatever their
type. Names on megatron's side are those of :func:`model_checkpoint.full_shapes`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from nemotron_style.runtime.errors import InputError, Problem, raise_all
from nemotron_style.steps.blocks.checkpoint.hf_config import CONFIG_FILE
from nemotron_style.steps.blocks.checkpoint.model_checkpoint import (
    check_depth,
    compare_shapes,
    full_shapes,
)
from nemotron_style.steps.blocks.checkpoint.safetensors_folder import TensorFolder
from nemotron_style.steps.blocks.model.language_model import unwrap
from nemotron_style.steps.blocks.model.sharded_tensor import Shard, shards
from nemotron_style.steps.blocks.settings.model_config import ModelConfig

EMBEDDING, HEAD = "embedding.word_embeddings.weight", "output_layer.weight"

_QKV, _GATE_UP = "self_attention.linear_qkv.weight", "mlp.linear_fc1.weight"
_LAYER = "decoder.layers."
_OF_A_LAYER = {
    "self_attention.linear_qkv.layer_norm_weight": ("input_layernorm",),
    _QKV: ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "self_attention.linear_proj.weight": ("self_attn.o_proj",),
    "mlp.linear_fc1.layer_norm_weight": ("post_attention_layernorm",),
    _GATE_UP: ("mlp.gate_proj", "mlp.up_proj"),
    "mlp.linear_fc2.weight": ("mlp.down_proj",),
}
_OF_THE_MODEL = {
    EMBEDDING: ("model.embed_tokens.weight",),
    "decoder.final_layernorm.weight": ("model.norm.weight",),
    HEAD: ("lm_head.weight",),
}


def hf_names(name: str) -> tuple[str, ...]:
    """Hugging Face's names of the parts of megatron's tensor ``name``."""
    if not name.startswith(_LAYER):
        return _OF_THE_MODEL[name]
    number, _, rest = name.removeprefix(_LAYER).partition(".")
    return tuple(f"model.layers.{number}.{part}.weight" for part in _OF_A_LAYER[rest])


def export_tensor(name: str, whole: Tensor, config: ModelConfig) -> dict[str, Tensor]:
    """megatron's tensor ``name`` as Hugging Face holds it: contiguous tensors by name."""
    if name.endswith(_QKV):
        groups, size = config.num_query_groups, config.head_size
        queries = config.num_attention_heads // groups
        by_group = whole.unflatten(0, (groups, queries + 2, size))
        parts = [part.flatten(0, 2) for part in by_group.split([queries, 1, 1], dim=1)]
    else:
        parts = list(whole.chunk(2)) if name.endswith(_GATE_UP) else [whole]
    return {key: part.contiguous() for key, part in zip(hf_names(name), parts, strict=True)}


def import_tensor(name: str, parts: Sequence[Tensor], config: ModelConfig) -> Tensor:
    """The inverse of :func:`export_tensor`: ``parts`` in the order of :func:`hf_names`."""
    if not name.endswith(_QKV):
        return torch.cat(list(parts)) if len(parts) > 1 else parts[0]
    shape = (config.num_query_groups, -1, config.head_size)
    return torch.cat([part.unflatten(0, shape) for part in parts], dim=1).flatten(0, 2)


def export_weights(
    weights: Iterable[tuple[str, Tensor]], config: ModelConfig
) -> Iterator[dict[str, Tensor]]:
    """Whole tensors of megatron, one after the other, as Hugging Face holds each."""
    for name, whole in weights:
        yield export_tensor(name, whole, config)


def import_weights(
    read: Callable[[str], Tensor], config: ModelConfig
) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of megatron by name, joined from those that ``read`` returns by name."""
    for name in full_shapes(config):
        yield name, import_tensor(name, [read(part) for part in hf_names(name)], config)


def expected_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a model of these sizes on Hugging Face's side."""
    empty = ((name, torch.empty(s, device="meta")) for name, s in full_shapes(config).items())
    units = export_weights(empty, config)
    return {name: tuple(part.shape) for unit in units for name, part in unit.items()}


def check_shapes(stored: Mapping[str, Sequence[int]], config: ModelConfig, *, where: str) -> None:
    """Raise InputError, naming every tensor that is missing, of another shape, or unknown."""
    check_depth(stored, config.num_layers, where=where, key="num_hidden_layers")
    problems = compare_shapes(
        stored,
        expected_shapes(config),
        where=where,
        config_file=CONFIG_FILE,
        unknown="this tensor has no place in a Llama",
    )
    raise_all(InputError, problems)


def check_tensors(folder: TensorFolder, config: ModelConfig) -> None:
    """Drop redundant tensors from ``folder`` and check that the rest is a model of these sizes.

    Redundant are a head that repeats tied embeddings, and the rotary tables of old checkpoints.
    Raises InputError as :func:`check_shapes` does, and for a head that differs from embeddings
    to which ``config.json`` ties it.
    """
    (embedding,), (head,) = _OF_THE_MODEL[EMBEDDING], _OF_THE_MODEL[HEAD]
    for name in [name for name in folder.shapes if name.endswith("rotary_emb.inv_freq")]:
        folder.drop(name)
    if config.tie_embeddings and head in folder.shapes and embedding in folder.shapes:
        if not torch.equal(folder.read(head), folder.read(embedding)):
            what = "config.json ties the head to the embeddings, and it differs from them"
            raise InputError(Problem(where=str(folder.path), key=head, what=what))
        folder.drop(head)
    check_shapes(folder.shapes, config, where=str(folder.path))


@torch.no_grad()
def fill_model(model: nn.Module, weights: Iterable[tuple[str, Tensor]]) -> None:
    """Copy whole tensors into the model's weights, this rank's slices of them.

    A larger vocabulary of the model is filled up with the mean row: an id that no tokenizer
    gives, and that is about as unlikely as the average token.
    """
    by_name: dict[str, list[Shard]] = defaultdict(list)
    for shard in shards(unwrap(model)):
        by_name[shard.name].append(shard)
    for name, whole in weights:
        for shard in by_name[name]:
            missing = shard.full_shape[0] - len(whole)
            if missing:  # rows of a vocabulary, the same for every shard of the tensor
                mean = whole.float().mean(0, keepdim=True).to(whole.dtype)
                whole = torch.cat([whole, mean.expand(missing, -1)])
            shard.data.copy_(whole[shard.slices])
