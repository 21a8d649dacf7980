"""Weights in megatron-core's ``torch_dist`` format, written cheaply and read without trust.

The format keeps its table of contents in a pickle, ``.metadata``. A pickle can run any code, so
:mod:`contents_reader` reads it, and its table is the one that torch and megatron-core get. The
tensors, and the objects beside them (``common.pt``), are pickles as well: torch reads them with
``weights_only``, which torch's own reader switches off for objects, hence :func:`_weights_only`.
"""

from __future__ import annotations

import nemotron_style.steps.blocks.model  # isort: skip  # noqa: F401  (imports megatron-core faster)
import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing import ShardedTensor
from megatron.core.dist_checkpointing.strategies import torch as mcore_strategy
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
from torch.distributed.checkpoint.metadata import (
    Metadata,
    MetadataIndex,
    TensorStorageMetadata,
)

from nemotron_style.runtime.errors import InputError, Problem, StepFailed
from nemotron_style.steps.blocks.checkpoint.contents_reader import (
    MAX_BYTES,
    ContentsError,
    parse_contents,
)
from nemotron_style.steps.blocks.checkpoint.finite import describe_nonfinite, find_nonfinite
from nemotron_style.steps.blocks.checkpoint.tensor_archive import check_archive
from nemotron_style.steps.blocks.model.rank_zero import gather, is_rank_zero

PLAN_OPTIONS = {"dedup_replicated_tensors": False, "flatten_state_dict": False}
# Warnings about calls that megatron-core makes, and about reading in one process.
_EXPECTED = ("`load_state_dict` is deprecated", "torch.distributed is disabled")


def read_contents(path: Path) -> Metadata:
    """The table of contents of a ``torch_dist`` directory; no code of it is run.

    Raises InputError when it is missing, damaged, names anything but a table's own classes, or
    points to files outside the directory.
    """
    file = path / ".metadata"
    try:
        with file.open("rb") as stream:
            contents = parse_contents(stream.read(MAX_BYTES + 1))
        if not _stays_inside(contents):
            raise ContentsError("it points to files outside the folder")
    except OSError as error:
        raise InputError(Problem(what="has no table of contents", where=str(file))) from error
    except Exception as error:  # a damaged pickle can raise anything
        what = "is not the table of contents of weights"
        raise InputError(Problem(what=what, where=str(file), got=str(error))) from error
    return contents


def _stays_inside(contents: Metadata) -> bool:
    names = {entry.relative_path for entry in contents.storage_data.values()}
    return all(name == os.path.basename(name) and name not in ("", "..") for name in names)


def tensor_entries(path: Path) -> dict[str, TensorStorageMetadata]:
    """The tensors of a ``torch_dist`` directory by name, whose bytes are in its files.

    Raises InputError as :func:`read_contents` does, and where the table promises more than the
    files hold: memory is taken for what it promises.
    """
    contents = read_contents(path)
    try:
        _check_files(contents, path)
        _check_archives(contents, path)
    except Exception as error:  # a damaged archive can raise anything
        what = "the weights cannot be read"
        raise InputError(Problem(what=what, where=str(path), got=str(error))) from error
    entries = contents.state_dict_metadata.items()
    return {name: entry for name, entry in entries if isinstance(entry, TensorStorageMetadata)}


def tensor_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Names and full shapes of the tensors in a ``torch_dist`` directory."""
    return {name: tuple(entry.size) for name, entry in tensor_entries(path).items()}


def _check_files(contents: Metadata, path: Path) -> None:
    """Raise ContentsError unless pieces fill each tensor, and the files have room for all."""
    room: dict[str, int] = {}
    for name, entry in contents.state_dict_metadata.items():
        if not isinstance(entry, TensorStorageMetadata):
            continue
        filled = 0
        for chunk in entry.chunks:
            stored = contents.storage_data[MetadataIndex(name, chunk.offsets)]
            if chunk.sizes.numel() * entry.properties.dtype.itemsize > stored.length:
                raise ContentsError(f"a piece of {name} is shorter than its tensor is large")
            file = stored.relative_path
            room[file] = room.get(file, (path / file).stat().st_size) - stored.length
            filled += chunk.sizes.numel()
        if filled != entry.size.numel():
            raise ContentsError(f"the pieces of {name} are not the whole tensor")
    for file, left in room.items():
        if left < 0:
            raise ContentsError(f"{file} is too short for its tensors")


def _check_archives(contents: Metadata, path: Path) -> None:
    """Raise unless all that torch opens for a model, ``common.pt`` too, are plain tensors."""
    entries = contents.storage_data.values()
    places = {(one.relative_path, one.offset, one.length) for one in entries}
    common = path / "common.pt"
    if common.is_file():
        places.add((common.name, 0, common.stat().st_size))
    for name, offset, length in places:
        check_archive(path / name, offset, length)


class _RepeatableWriter(dcp.FileSystemWriter):
    """Writes equal files for equal weights: torch adds the folder written to and a random id."""

    def __init__(self, path: str | Path) -> None:
        # Where there is a CUDA device torch asks for tensors ahead of those it writes, smallest
        # first: the files would differ from a CPU's, and a planner could not free what is written.
        super().__init__(path, thread_count=1, per_thread_copy_ahead=0)

    def storage_meta(self) -> None:
        return None


class SaveInProcess(TorchDistSaveShardedStrategy):
    """Writes from this process. megatron-core's own strategy forks a writer for each save, to
    overlap it with training; that takes seconds even for a tiny model."""

    def __init__(self, planner: MCoreSavePlanner | None = None) -> None:
        super().__init__("torch_dist", 1, thread_count=1)
        self.planner = planner or MCoreSavePlanner(**PLAN_OPTIONS)

    def save(self, sharded_state_dict: dict[str, Any], checkpoint_dir: str | Path) -> None:
        named, _, _ = _replace_state_dict_keys_with_sharded_keys(sharded_state_dict, True)
        dcp.save(
            mcore_to_pyt_state_dict(named, False),
            storage_writer=_RepeatableWriter(checkpoint_dir),
            planner=self.planner,
        )


def write(state: dict[str, Any], path: Path) -> None:
    """Write the sharded ``state`` of all ranks into ``path``; every rank calls it.

    Raises StepFailed, on all ranks and before anything is written, for numbers that are not finite.
    """
    _require_finite(state, where=str(path), reading=False)
    if is_rank_zero():
        path.mkdir(parents=True, exist_ok=True)
    dist.barrier()
    dist_checkpointing.save(
        state, str(path), sharded_strategy=SaveInProcess(), validate_access_integrity=False
    )


def read(state: dict[str, Any], path: Path) -> dict[str, Any]:
    """This rank's share of the tensors that ``state`` describes; every rank calls it.

    Raises InputError when the directory cannot be trusted, lacks something or holds numbers that
    are not finite.
    """
    with reading(path), _checked_reader():
        own = dist_checkpointing.load(
            state,
            str(path),
            # The strategy that metadata.json names is not asked for: the file is not trusted.
            sharded_strategy=TorchDistLoadShardedStrategy(),
            validate_access_integrity=False,
        )
    _require_finite(own, where=str(path), reading=True)
    return own


class CheckedReader(CachedMetadataFileSystemReader):
    """Takes the table from :func:`read_contents`; its base class unpickles the file."""

    def read_metadata(self, *_args: Any, **_kwargs: Any) -> Metadata:
        if self._cached_metadata is None:
            self._cached_metadata = read_contents(Path(self.path))
        return self._cached_metadata


def _require_finite(state: Mapping[str, Any], *, where: str, reading: bool) -> None:
    """Check every rank's tensors of a (nested) state; every rank calls it.

    Raises on all ranks where any has one that is not finite: InputError for what was read,
    StepFailed for what is about to be written.
    """
    own = find_nonfinite(_tensors(state))
    by_rank = gather(own)
    if not any(by_rank):
        return
    names = sorted({name for names in by_rank for name in names})
    ranks = ", ".join(str(rank) for rank, names in enumerate(by_rank) if names)
    problem = describe_nonfinite(names, where=where)
    if len(by_rank) > 1:
        problem = replace(problem, got=f"{problem.got}, on rank {ranks}")
    raise (InputError if reading else StepFailed)(problem)


def _tensors(state: Any, name: str = "") -> Iterator[tuple[str, Tensor]]:
    if isinstance(state, ShardedTensor):
        yield state.key, state.data
    elif isinstance(state, Tensor):
        yield name, state
    elif isinstance(state, Mapping):
        for key, value in state.items():
            yield from _tensors(value, str(key))
    elif isinstance(state, list | tuple):
        for value in state:
            yield from _tensors(value, name)


@contextmanager
def reading(path: Path) -> Iterator[None]:
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


@contextmanager
def _checked_reader() -> Iterator[None]:
    """Have megatron-core's strategy read the table as :class:`CheckedReader` does."""
    before = mcore_strategy._get_filesystem_reader
    mcore_strategy._get_filesystem_reader = lambda path, **_: CheckedReader(path)
    try:
        yield
    finally:
        mcore_strategy._get_filesystem_reader = before


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
