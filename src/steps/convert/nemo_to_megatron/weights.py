"""The tensors of a ``torch_dist`` directory of NeMo or Megatron-LM under the names used here.

Both keep a tensor that every layer has in one, stacked: ``decoder.layers.mlp.linear_fc1.weight`` of
``[layers, ...]``, in pieces that were written by one rank each. A layer's tensor is read piece by
piece, so that no more than it is in memory. What stands beside the weights (``common.pt``, the
``_extra_state`` of Transformer Engine, an optimizer's state) is not of the model, or a pickle, and
is not looked at.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorStorageMetadata,
)

from nemotron_style.runtime.errors import InputError, Problem, raise_all
from nemotron_style.steps.blocks.checkpoint.contents_reader import MAX_BYTES, parse_contents
from nemotron_style.steps.blocks.checkpoint.finite import describe_nonfinite, is_finite
from nemotron_style.steps.blocks.checkpoint.tensor_archive import check_archive
from nemotron_style.steps.convert.nemo_to_megatron.archive import Span

EMBEDDING = "embedding.word_embeddings.weight"
TYPES = (torch.float32, torch.float16, torch.bfloat16)
MOST_LAYERS = 10_000
_CONTENTS = ".metadata"
_STACKED = re.compile(r"decoder\.layers\.(?!\d)(.+)")
# Layers that were built without Transformer Engine have their norms beside what they feed.
_LOCAL_NAMES = (
    (".input_layernorm.", ".self_attention.linear_qkv.layer_norm_"),
    (".pre_mlp_layernorm.", ".mlp.linear_fc1.layer_norm_"),
)
_BESIDE = ("optimizer.", "chained_", "opt_param_scheduler", "rng_state", "rerun_state_machine")


class _Place(NamedTuple):
    """A stored tensor, and which layer of it; None where it is not stacked."""

    name: str
    layer: int | None


@dataclass(frozen=True)
class StackedWeights:
    """Tensors by their names here: ``shapes`` and ``types``, and where each lies."""

    where: str
    shapes: dict[str, tuple[int, ...]]
    types: dict[str, torch.dtype]
    _places: Mapping[str, _Place]
    _contents: Metadata
    _files: Mapping[str, Span]

    def read(self, name: str) -> Tensor:
        """The tensor called ``name``, whole, on the CPU.

        Raises InputError for pieces that are damaged, or leave a part of it open, and for numbers
        that are not finite.
        """
        stored, layer = self._places[name]
        # What no piece fills stays NaN, and is refused below.
        whole = torch.full(self.shapes[name], math.nan, dtype=self.types[name])
        for chunk in _chunks(self._contents, stored):
            inner = [slice(a, a + n) for a, n in zip(chunk.offsets, chunk.sizes, strict=True)]
            if layer is None:
                whole[tuple(inner)] = self._read_piece(stored, chunk)
            elif inner[0].start <= layer < inner[0].stop:
                piece = self._read_piece(stored, chunk)
                whole[tuple(inner[1:])] = piece[layer - inner[0].start]
        if not is_finite(whole):
            raise InputError(describe_nonfinite([name], where=self.where))
        return whole

    def _read_piece(self, stored: str, chunk: ChunkStorageMetadata) -> Tensor:
        entry = self._contents.storage_data[MetadataIndex(stored, chunk.offsets)]
        span = self._files[entry.relative_path]
        start = span.offset + entry.offset
        try:
            check_archive(span.path, start, entry.length)
            with span.path.open("rb") as file:
                file.seek(start)
                content = io.BytesIO(file.read(entry.length))
            piece = torch.load(content, map_location="cpu", weights_only=True)
            expected = _entry(self._contents, stored).properties.dtype
            if piece.shape != chunk.sizes or piece.dtype != expected:
                raise ValueError(f"{list(piece.shape)} of {piece.dtype} is not what the table says")
        except Exception as error:  # a damaged archive can raise anything
            got = str(error).splitlines()[0] if str(error) else type(error).__name__
            what = "a piece of a tensor cannot be read"
            raise InputError(
                Problem(where=self.where, key=stored, what=what, got=got[:200])
            ) from error
        return piece


def open_weights(files: Mapping[str, Span], *, where: str) -> StackedWeights:
    """The tensors in the files of a ``torch_dist`` directory; ``where`` is what a user calls it.

    Raises InputError for a table of contents that is none, that promises more than the files hold,
    or that names a tensor twice, and for weights of other types than a model's.
    """
    try:
        contents = parse_contents(files[_CONTENTS].read(MAX_BYTES))
        _check_room(contents, files)
    except Exception as error:  # a damaged pickle can raise anything
        what = "is not the table of contents of weights"
        got = f"there is no {error}" if isinstance(error, KeyError) else str(error)
        raise InputError(Problem(where=where, key=_CONTENTS, what=what, got=got[:200])) from error
    places: dict[str, _Place] = {}
    problems: list[Problem] = []
    for stored in _names(contents):
        kind = _entry(contents, stored).properties.dtype
        if kind not in TYPES:
            allowed = ", ".join(str(one).removeprefix("torch.") for one in TYPES)
            what = "weights of this type cannot be converted"
            got = str(kind).removeprefix("torch.")
            problems.append(Problem(where=where, key=stored, what=what, got=got, allowed=allowed))
        for name, place in _unstack(stored, _prefix(contents), _entry(contents, stored)):
            if name in places:
                what = f"is there a second time, as {places[name].name}"
                problems.append(Problem(where=where, key=stored, what=what))
            places[name] = place
    raise_all(InputError, problems)
    sizes = {name: tuple(_entry(contents, place.name).size) for name, place in places.items()}
    return StackedWeights(
        where,
        {name: sizes[name][place.layer is not None :] for name, place in places.items()},
        {name: _entry(contents, place.name).properties.dtype for name, place in places.items()},
        places,
        contents,
        files,
    )


def _entry(contents: Metadata, name: str) -> TensorStorageMetadata:
    entry = contents.state_dict_metadata[name]
    assert isinstance(entry, TensorStorageMetadata)
    return entry


def _chunks(contents: Metadata, name: str) -> list[ChunkStorageMetadata]:
    return _entry(contents, name).chunks


def _names(contents: Metadata) -> Iterator[str]:
    """The stored names of the model's tensors."""
    for name, entry in contents.state_dict_metadata.items():
        beside = name.startswith(_BESIDE) or "_extra_state" in name
        if isinstance(entry, TensorStorageMetadata) and not beside:
            yield name


def _prefix(contents: Metadata) -> str:
    """What stands before every name: NeMo writes ``model.``, Megatron-LM nothing."""
    found = [name for name in _names(contents) if name.endswith(EMBEDDING)]
    return found[0].removesuffix(EMBEDDING) if found else ""


def _unstack(
    stored: str, prefix: str, entry: TensorStorageMetadata
) -> Iterator[tuple[str, _Place]]:
    """Names and places of the tensors in a stored one: one for each layer where it is stacked."""
    name = stored.removeprefix(prefix)
    for local, ours in _LOCAL_NAMES:
        name = name.replace(local, ours)
    stacked = _STACKED.fullmatch(name)
    if not stacked or not entry.size or entry.size[0] > MOST_LAYERS:
        yield name, _Place(stored, None)
        return
    for layer in range(entry.size[0]):
        yield f"decoder.layers.{layer}.{stacked[1]}", _Place(stored, layer)


def _check_room(contents: Metadata, files: Mapping[str, Span]) -> None:
    """Raise ValueError or KeyError unless the files have room for all that the table promises."""
    room: dict[str, int] = {}
    for name in _names(contents):
        entry, filled = _entry(contents, name), 0
        for chunk in entry.chunks:
            stored = contents.storage_data[MetadataIndex(name, chunk.offsets)]
            file = stored.relative_path
            room[file] = room.get(file, files[file].size) - stored.length
            if chunk.sizes.numel() * entry.properties.dtype.itemsize > stored.length:
                raise ValueError(f"a piece of {name} is shorter than its tensor is large")
            if stored.offset + stored.length > files[file].size or room[file] < 0:
                raise ValueError(f"{file} is too short for its tensors")
            ends = [a + n for a, n in zip(chunk.offsets, chunk.sizes, strict=True)]
            if any(end > size for end, size in zip(ends, entry.size, strict=True)):
                raise ValueError(f"a piece of {name} reaches beyond its tensor")
            filled += chunk.sizes.numel()
        if filled != entry.size.numel():
            raise ValueError(f"the pieces of {name} are not the whole tensor")
