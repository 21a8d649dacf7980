"""Weights in megatron-core's ``torch_dist`` format, written cheaply and read without trust.

The format keeps its table of contents in a pickle, ``.metadata``. A pickle can run any code, so
it is read by an unpickler that allows the few classes of such a table and nothing else; only a
directory that passed is handed to megatron-core. The tensors, and the objects beside them
(``common.pt``), are pickles as well: torch reads them with ``weights_only``, which torch's own
reader switches off for objects, hence :func:`_weights_only`.
"""

from __future__ import annotations

import nemotron_style.steps.blocks.model  # isort: skip  # noqa: F401  (imports megatron-core faster)
import os
import pickle
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum, EnumType
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing.strategies.cached_metadata_filesystem_reader import (
    CachedMetadataFileSystemReader,
)
from megatron.core.dist_checkpointing.strategies.torch import (
    MCoreSavePlanner,
    TorchDistLoadShardedStrategy,
    TorchDistSaveShardedStrategy,
    _replace_state_dict_keys_with_sharded_keys,
    mcore_to_pyt_state_dict,
)
from torch import Tensor
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata

from nemotron_style.runtime.errors import InputError, Problem
from nemotron_style.steps.blocks.checkpoint.finite import require_finite_parts
from nemotron_style.steps.blocks.model.rank_zero import is_rank_zero

_DCP = "torch.distributed.checkpoint"
_TABLE = (
    "BytesStorageMetadata",
    "ChunkStorageMetadata",
    "Metadata",
    "MetadataIndex",
    "StorageMeta",
    "TensorProperties",
    "TensorStorageMetadata",
    "_MEM_FORMAT_ENCODING",
)
_DTYPES = ("float64", "float32", "float16", "bfloat16", "int64", "uint8")
_ALLOWED = {
    *((f"{_DCP}.metadata", name) for name in _TABLE),
    *(("torch", name) for name in _DTYPES),
    (f"{_DCP}.filesystem", "_StorageInfo"),
    ("torch", "Size"),
    ("torch.serialization", "_get_layout"),
    ("collections", "OrderedDict"),
    ("builtins", "set"),
    ("pathlib", "PosixPath"),
    ("pathlib", "PurePosixPath"),
}

# Warnings about calls that megatron-core makes, and about reading in one process.
_EXPECTED = ("`load_state_dict` is deprecated", "torch.distributed is disabled")


class _TableUnpickler(pickle.Unpickler):
    """Reads ``.metadata``; refuses every name that is not in :data:`_ALLOWED`."""

    def find_class(self, module: str, name: str) -> Any:
        # Some Pythons (3.11.0 to 3.11.2) pickle the member of an Enum as getattr(Enum, name). The
        # real getattr would reach any attribute of an allowed class, and code from there.
        if (module, name) == ("builtins", "getattr"):
            return _enum_member
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"it names {module}.{name}")
        return super().find_class(module, name)


def _enum_member(kind: Any, name: Any) -> Enum:
    """The member ``name`` of an allowed Enum class; any other attribute is refused."""
    known = isinstance(kind, EnumType) and (kind.__module__, kind.__qualname__) in _ALLOWED
    if not known or type(name) is not str or name not in kind.__members__:
        raise pickle.UnpicklingError(f"it names builtins.getattr with {kind!r} and {name!r}")
    return kind[name]


def read_contents(path: Path) -> Metadata:
    """The table of contents of a ``torch_dist`` directory; no code of it is run.

    Raises InputError when it is missing, damaged, names anything but a table's own classes, or
    points to files outside the directory.
    """
    file = path / ".metadata"
    try:
        with file.open("rb") as stream:
            contents = _TableUnpickler(stream).load()
    except OSError as error:
        raise InputError(Problem(what="has no table of contents", where=str(file))) from error
    except Exception as error:  # a damaged pickle can raise anything
        raise InputError(
            Problem(what="is not the table of contents of weights", where=str(file), got=str(error))
        ) from error
    if not isinstance(contents, Metadata) or not _stays_inside(contents):
        raise InputError(Problem(what="is not the table of contents of weights", where=str(file)))
    return contents


def _stays_inside(contents: Metadata) -> bool:
    names = {entry.relative_path for entry in (contents.storage_data or {}).values()}
    return all(name == os.path.basename(name) and name != ".." for name in names)


def tensor_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Names and full shapes of the tensors in a ``torch_dist`` directory."""
    entries = read_contents(path).state_dict_metadata.items()
    return {
        name: tuple(entry.size)
        for name, entry in entries
        if isinstance(entry, TensorStorageMetadata)
    }


class _SaveInProcess(TorchDistSaveShardedStrategy):
    """Writes from this process. megatron-core's own strategy forks a writer for each save, to
    overlap it with training; that takes seconds even for a tiny model."""

    def __init__(self) -> None:
        super().__init__("torch_dist", 1, thread_count=1)

    def save(self, sharded_state_dict: dict[str, Any], checkpoint_dir: str | Path) -> None:
        named, _, _ = _replace_state_dict_keys_with_sharded_keys(sharded_state_dict, True)
        dcp.save(
            mcore_to_pyt_state_dict(named, False),
            storage_writer=dcp.FileSystemWriter(checkpoint_dir, thread_count=1),
            planner=MCoreSavePlanner(dedup_replicated_tensors=False, flatten_state_dict=False),
        )


def write(state: dict[str, Any], path: Path) -> None:
    """Write the sharded ``state`` of all ranks into ``path``; every rank calls it.

    Raises StepFailed, on all ranks and before anything is written, for numbers that are not finite.
    """
    require_finite_parts(state, where=str(path), reading=False)
    if is_rank_zero():
        path.mkdir(parents=True, exist_ok=True)
    dist.barrier()
    dist_checkpointing.save(
        state, str(path), sharded_strategy=_SaveInProcess(), validate_access_integrity=False
    )


def read(state: dict[str, Any], path: Path) -> dict[str, Any]:
    """This rank's share of the tensors that ``state`` describes; every rank calls it.

    Raises InputError when the directory cannot be trusted, lacks something or holds numbers that
    are not finite.
    """
    read_contents(path)
    with _reading(path):
        own = dist_checkpointing.load(
            state,
            str(path),
            # The strategy that metadata.json names is not asked for: the file is not trusted.
            sharded_strategy=TorchDistLoadShardedStrategy(),
            validate_access_integrity=False,
        )
    require_finite_parts(own, where=str(path), reading=True)
    return own


def read_full(path: Path) -> Iterator[tuple[str, Tensor]]:
    """Each tensor whole, in the order of names, on the CPU; one at a time, by this rank alone."""
    entries = read_contents(path).state_dict_metadata
    reader = CachedMetadataFileSystemReader(path)
    for name in sorted(entries):
        entry = entries[name]
        if isinstance(entry, TensorStorageMetadata):
            part = {name: torch.empty(entry.size, dtype=entry.properties.dtype)}
            with _reading(path):
                dcp.load(part, storage_reader=reader, no_dist=True)
            yield name, part[name]


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turn whatever goes wrong while tensors are read into an InputError that names ``path``."""
    try:
        with _weights_only(), warnings.catch_warnings():
            for message in _EXPECTED:
                warnings.filterwarnings("ignore", message=message)
            yield
    except (Exception, dcp.api.CheckpointException) as error:  # the latter is no Exception
        raise InputError(
            Problem(what="the weights cannot be read", where=str(path), got=_cause(error))
        ) from error


def _cause(error: BaseException) -> str:
    """What went wrong on the first rank where something did, without its traceback."""
    failures = getattr(error, "failures", None)
    first = next(iter(failures.values()))[0] if failures else error
    return f"{type(first).__name__}: {first}".splitlines()[0]


@contextmanager
def _weights_only() -> Iterator[None]:
    """Make torch.load refuse pickled code, whatever the environment asks for."""
    names = ("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "TORCH_FORCE_WEIGHTS_ONLY_LOAD")
    before = {name: os.environ.pop(name) for name in names if name in os.environ}
    os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = "1"
    try:
        yield
    finally:
        del os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"]
        os.environ.update(before)
