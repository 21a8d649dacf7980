"""``torch_dist`` directories one tensor at a time, by one process: the memory that a copy takes.

The files are those that :mod:`torch_dist` writes for a model that is held whole.
"""

from __future__ import annotations

import nemotron_style.steps.blocks.model  # isort: skip  # noqa: F401  (imports megatron-core faster)
import gc
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing.strategies.torch import MCoreSavePlanner
from torch import Tensor
from torch.distributed.checkpoint.planner import WriteItem

from nemotron_style.runtime.errors import InputError, StepFailed
from nemotron_style.steps.blocks.checkpoint.finite import describe_nonfinite, is_finite
from nemotron_style.steps.blocks.checkpoint.torch_dist import (
    PLAN_OPTIONS,
    CheckedReader,
    SaveInProcess,
    reading,
    tensor_entries,
)

Read = Callable[[str], Tensor]


class WeightFolder:
    """The tensors of a ``torch_dist`` directory by name, each read whole when it is asked for.

    Raises InputError as :func:`torch_dist.tensor_entries` does.
    """

    def __init__(self, path: Path) -> None:
        self.path, self._reader = path, CheckedReader(path)
        self._entries = tensor_entries(path)

    @property
    def dtype(self) -> torch.dtype:
        """The type of the first tensor, which in a model is that of all."""
        return next(iter(self._entries.values())).properties.dtype

    def outline(self) -> Iterator[tuple[str, Tensor]]:
        """Each tensor without memory, in the order of names."""
        for name, entry in sorted(self._entries.items()):
            yield name, torch.empty(entry.size, dtype=entry.properties.dtype, device="meta")

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """Each tensor whole, in the order of names; one at a time."""
        return ((name, self.read(name)) for name in sorted(self._entries))

    def read(self, name: str) -> Tensor:
        """The tensor called ``name``, on the CPU. Raises InputError where it is not finite."""
        entry = self._entries[name]
        part = {name: torch.empty(entry.size, dtype=entry.properties.dtype)}
        with reading(self.path):
            dcp.load(part, storage_reader=self._reader, no_dist=True)
        gc.collect(1)  # it leaves what it read in a cycle of references
        if not is_finite(part[name]):
            raise InputError(describe_nonfinite([name], where=str(self.path)))
        return part[name]


@dataclass(frozen=True)
class StoredTensor:
    """A tensor of a ``torch_dist`` directory that can be read."""

    folder: WeightFolder
    name: str
    type: str
    shape: tuple[int, ...]

    def read(self) -> Any:
        """Its values as an array, bfloat16 as float32, since numpy has no such type."""
        whole = self.folder.read(self.name)
        return (whole.float() if whole.dtype is torch.bfloat16 else whole).numpy()


def open_tensors(path: Path) -> dict[str, StoredTensor]:
    """The tensors of a ``torch_dist`` directory by name, for whoever compares two of them.

    The runtime knows no layout of weights: ``kinds.toml`` names this function to it.
    """
    folder = WeightFolder(path)
    return {
        name: StoredTensor(folder, name, str(tensor.dtype), tuple(tensor.shape))
        for name, tensor in folder.outline()
    }


def read_full(path: Path) -> Iterator[tuple[str, Tensor]]:
    """Each tensor whole, in the order of names, on the CPU; one at a time, by this rank alone."""
    return WeightFolder(path).weights()


def write_full(state: dict[str, Any], path: Path, read: Read) -> None:
    """Write what ``state`` describes; ``read`` returns each tensor when its turn has come.

    ``state`` is the sharded state of a model without memory, on the device ``meta``. Raises
    StepFailed for a tensor that holds numbers which are not finite.
    """
    path.mkdir(parents=True, exist_ok=True)
    strategy = SaveInProcess(_LazyPlanner(read, where=str(path)))
    try:
        dist_checkpointing.save(
            state, str(path), sharded_strategy=strategy, validate_access_integrity=False
        )
    except dcp.api.CheckpointException as error:  # around what was raised while it wrote
        [(cause, _)] = error.failures.values()
        raise cause from error


class _LazyPlanner(MCoreSavePlanner):
    """Asks for a tensor by its name when it is to be written, and takes its memory back after."""

    def __init__(self, read: Read, *, where: str) -> None:
        super().__init__(**PLAN_OPTIONS)
        self._read, self._where = read, where
        self._name, self._whole = "", torch.empty(0)
        self._written = torch.empty(0)

    def resolve_data(self, write_item: WriteItem) -> Tensor:
        # torch keeps every tensor until the last is written, so what it keeps is emptied.
        self._written.untyped_storage().resize_(0)
        name, chunk = write_item.index.fqn, write_item.tensor_data.chunk
        if name != self._name:  # the pieces of one tensor follow one another
            self._whole = torch.empty(0)
            self._name, self._whole = name, self._read(name)
            if not is_finite(self._whole):
                raise StepFailed(describe_nonfinite([name], where=self._where))
        spans = zip(chunk.offsets, chunk.sizes, strict=True)
        piece = self._whole[tuple(slice(start, start + size) for start, size in spans)]
        self._written = piece.clone(memory_format=torch.contiguous_format)
        return self._written
