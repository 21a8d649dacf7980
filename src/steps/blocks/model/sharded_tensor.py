"""The tensors of a model under their canonical names, whichever way the model is divided."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.dist_checkpointing.dict_utils import nested_values
from megatron.core.dist_checkpointing.mapping import ShardedTensor, ShardedTensorFactory
from torch import Tensor, nn

from nemotron_style.steps.blocks.model.rank_zero import gather

ADAPTER = re.compile(r"\.lora_[AB]$")
"""What the names of the two factors of a low-rank adapter end with."""


@dataclass(frozen=True)
class Shard:
    """A slice of a tensor that this rank holds; ``data`` is a view of the parameter.

    ``primary`` marks one holder of each slice among all ranks.
    """

    name: str
    full_shape: tuple[int, ...]
    slices: tuple[slice, ...]
    data: Tensor
    primary: bool


def sharded_weights(model: nn.Module, *, adapters: bool = False) -> dict[str, Any]:
    """megatron-core's sharded state dict, with the number of its layer in every name.

    That of the model's own weights, or that of its ``adapters``. Without the ``_extra_state``
    objects, which are empty here and would be pickles on disk.
    """
    group = parallel_state.get_data_parallel_group(with_context_parallel=True)
    metadata = {"non_homogeneous_layers": True, "dp_cp_group": group}
    state = model.sharded_state_dict(prefix="", metadata=metadata)
    return {
        name: value
        for name, value in state.items()
        if not name.endswith("_extra_state") and bool(ADAPTER.search(name)) == adapters
    }


def shards(model: nn.Module, *, adapters: bool = False) -> Iterator[Shard]:
    """Every slice of every weight (or adapter) on this rank, gate and up projection apart."""
    for value in nested_values(sharded_weights(model, adapters=adapters)):
        parts = value.build() if isinstance(value, ShardedTensorFactory) else [value]
        yield from (_shard(part) for part in parts if isinstance(part, ShardedTensor))


def name_generator(seed: int, name: str) -> torch.Generator:
    """Random numbers for a tensor, which depend on its ``name`` and on nothing around it."""
    name_seed = hashlib.sha256(f"{seed}/{name}".encode()).digest()[:7]
    return torch.Generator().manual_seed(int.from_bytes(name_seed, "big"))


def _shard(part: ShardedTensor) -> Shard:
    spans = zip(part.global_offset, part.local_shape, strict=True)
    replica = part.replica_id
    return Shard(
        name=part.key,
        full_shape=tuple(part.global_shape),
        slices=tuple(slice(start, start + length) for start, length in spans),
        data=part.data.detach(),
        primary=not any(replica) if isinstance(replica, tuple) else replica == 0,
    )


class _Piece(NamedTuple):
    """A slice of a tensor, and the rank that gives it to all others."""

    name: str
    rank: int
    number: int
    full_shape: tuple[int, ...]
    slices: tuple[slice, ...]
    dtype: torch.dtype


@torch.no_grad()
def whole_weights(model: nn.Module, *, adapters: bool = False) -> Iterator[tuple[str, Tensor]]:
    """Copies of every tensor, whole, in the order of names, where the model is.

    The model's own weights, or those of its ``adapters``.

    Ranks give each other what they hold of one tensor before the next: no more than that one is
    held beside what the caller keeps. Every rank calls it, and takes all of it.
    """
    own = [shard for shard in shards(model, adapters=adapters) if shard.primary]
    described = gather(
        [(shard.name, shard.full_shape, shard.slices, shard.data.dtype) for shard in own]
    )
    pieces = [
        _Piece(name, rank, number, shape, slices, dtype)
        for rank, held in enumerate(described)
        for number, (name, shape, slices, dtype) in enumerate(held)
    ]
    device = next(model.parameters()).device
    for name, parts in groupby(sorted(pieces, key=lambda piece: piece[:3]), lambda one: one.name):
        whole: Tensor | None = None
        for part in parts:
            if whole is None:
                whole = torch.empty(part.full_shape, dtype=part.dtype, device=device)
            target = whole[part.slices]
            if part.rank == dist.get_rank():
                target.copy_(own[part.number].data)
            if len(described) > 1:
                piece = target.contiguous()
                dist.broadcast(piece, src=part.rank)
                target.copy_(piece)
        assert whole is not None
        yield name, whole
