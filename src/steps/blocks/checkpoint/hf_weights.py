"""The weights of a model under Hugging Face's names and back, bit for bit.

What is called how, and what is joined where, is in :mod:`families.tensors`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from nemotron_style.runtime.errors import InputError, Problem, raise_all
from nemotron_style.steps.blocks.checkpoint.families.table import BY_ARCHITECTURE
from nemotron_style.steps.blocks.checkpoint.families.tensors import (
    EMBEDDING,
    HEAD,
    expected_shapes,
    export_tensor,
    full_shapes,
    hf_names,
    import_tensor,
)
from nemotron_style.steps.blocks.checkpoint.hf_config import CONFIG_FILE
from nemotron_style.steps.blocks.checkpoint.model_checkpoint import (
    check_depth,
    compare_shapes,
)
from nemotron_style.steps.blocks.checkpoint.safetensors_folder import TensorFolder
from nemotron_style.steps.blocks.model.language_model import unwrap
from nemotron_style.steps.blocks.model.sharded_tensor import Shard, shards
from nemotron_style.steps.blocks.settings.model_config import ModelConfig


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
        yield name, read_whole(name, read, config)


def read_whole(name: str, read: Callable[[str], Tensor], config: ModelConfig) -> Tensor:
    """megatron's tensor ``name``, joined from those that ``read`` returns by name."""
    return import_tensor(name, [read(part) for part in hf_names(name, config)], config)


def check_shapes(stored: Mapping[str, Sequence[int]], config: ModelConfig, *, where: str) -> None:
    """Raise InputError, naming every tensor that is missing, of another shape, or unknown."""
    check_depth(stored, config.num_layers, where=where, key="num_hidden_layers")
    problems = compare_shapes(
        stored,
        expected_shapes(config),
        where=where,
        config_file=CONFIG_FILE,
        unknown=f"this tensor has no place in a {BY_ARCHITECTURE[config.architecture].name}",
    )
    raise_all(InputError, problems)


def check_tensors(folder: TensorFolder, config: ModelConfig) -> None:
    """Drop redundant tensors from ``folder`` and check that the rest is a model of these sizes.

    Redundant are a head that repeats tied embeddings, and the rotary tables of old checkpoints.
    Raises InputError as :func:`check_shapes` does, and for a head that differs from embeddings
    to which ``config.json`` ties it.
    """
    (embedding,), (head,) = hf_names(EMBEDDING, config), hf_names(HEAD, config)
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
            shard.data.copy_(pad_rows(whole, shard.full_shape[0])[shard.slices])


def pad_rows(whole: Tensor, rows: int) -> Tensor:
    """A tensor of ``rows`` rows: those of a larger vocabulary are the mean of the others."""
    missing = rows - len(whole)
    if not missing:
        return whole
    mean = whole.float().mean(0, keepdim=True).to(whole.dtype)
    return torch.cat([whole, mean.expand(missing, -1)])
