"""Which tensors of two checkpoints differ, and by how much.

Safetensors are read here, a tensor at a time, without torch: the file is a table in JSON, then
bytes. Weights in another layout are opened by what their kind names (``tensors`` in
``kinds.toml``).
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from nemotron_style.runtime.errors import ArtifactError, Problem
from nemotron_style.runtime.store.content.finding import Finding, count

if TYPE_CHECKING:
    import numpy as np

SUFFIX = ".safetensors"
SHOWN = 5
MOST_HEADER_BYTES = 100_000_000  # as the safetensors library has it
# numpy's names; bfloat16 is the upper half of a float32
TYPES = {
    "F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2", "I64": "<i8", "I32": "<i4",
    "I16": "<i2", "I8": "i1", "U8": "u1", "U16": "<u2", "U32": "<u4", "U64": "<u8", "BOOL": "?",
}  # fmt: skip


class StoredTensor(Protocol):
    """A tensor that can be read: its type in the words of its format, its shape, its values."""

    @property
    def type(self) -> str: ...

    @property
    def shape(self) -> tuple[int, ...]: ...

    def read(self) -> np.ndarray[Any, Any]:
        """The values, bfloat16 as float32."""


@dataclass(frozen=True)
class WeightLayout:
    """Weights that are a folder of an artifact; ``open`` gives the tensors in it, by name."""

    folder: str
    open: Callable[[Path], Mapping[str, StoredTensor]]


@dataclass(frozen=True)
class SafeTensor:
    """A tensor of a safetensors file, whose bytes begin at ``offset``."""

    path: Path
    type: str
    shape: tuple[int, ...]
    offset: int
    length: int

    def read(self) -> np.ndarray[Any, Any]:
        """The values. Raises ArtifactError where the file is shorter than its table says."""
        import numpy as np

        # A type that numpy has no name for (8-bit floats) is compared by its bytes.
        kind = np.dtype(TYPES.get(self.type, "u1"))
        number = self.length // kind.itemsize
        values = np.fromfile(self.path, dtype=kind, count=number, offset=self.offset)
        if values.size != number:
            what = "is shorter than its table says"
            raise ArtifactError(Problem(where=str(self.path), what=what))
        if self.type == "BF16":
            values = (values.astype("<u4") << 16).view("<f4")
        return values


def open_safetensors(folder: Path) -> dict[str, StoredTensor]:
    """The tensors of all safetensors files below a folder, by name.

    Raises ArtifactError for a file that is none.
    """
    tensors: dict[str, StoredTensor] = {}
    for path in sorted(folder.rglob(f"*{SUFFIX}")):
        inner = path.parent.relative_to(folder).as_posix()
        prefix = "" if inner == "." else f"{inner}/"
        tensors |= {f"{prefix}{name}": tensor for name, tensor in _open_file(path)}
    return tensors


def _open_file(path: Path) -> Iterator[tuple[str, SafeTensor]]:
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > MOST_HEADER_BYTES:
                raise ValueError(f"its table has {length} bytes")
            table = json.loads(file.read(length))
        for name, entry in table.items():
            if name != "__metadata__":
                begin, end = map(int, entry["data_offsets"])
                shape = tuple(map(int, entry["shape"]))
                place = 8 + length + begin
                yield name, SafeTensor(path, str(entry["dtype"]), shape, place, end - begin)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, struct.error) as error:
        what = "is not a safetensors file"
        raise ArtifactError(Problem(where=str(path), what=what, got=str(error))) from error


def compare_tensors(
    left: Mapping[str, StoredTensor], right: Mapping[str, StoredTensor], *, name: str
) -> Finding:
    """The tensors in which two sets of weights differ, the largest difference first.

    One of each is in memory at a time. Raises ImportError without numpy.
    """
    common = [key for key in left if key in right]
    unlike = {
        key: f"{described[0]} -> {described[1]}"
        for key in common
        if len(set(described := [_describe(side[key]) for side in (left, right)])) > 1
    }
    only = {
        "left": [key for key in left if key not in right],
        "right": [key for key in right if key not in left],
    }
    distances: dict[str, float] = {}
    for key in common:
        if key not in unlike:
            ours, theirs = left[key].read(), right[key].read()
            if ours.tobytes() != theirs.tobytes():
                distances[key] = find_distance(ours, theirs)
    largest = sorted(distances, key=lambda key: (-_rank(distances[key]), key))
    parts = [f"{len(distances):,} of {count(len(common), 'tensor')} differ"] if distances else []
    parts += [f"at most by {distances[key]:.3g} ({key})" for key in largest[:1]]
    parts += [f"{count(len(unlike), 'tensor')} of another type or shape"] if unlike else []
    parts += [f"{count(len(keys), 'tensor')} only {side}" for side, keys in only.items() if keys]
    examples = [f"{key}: by {distances[key]:.3g}" for key in largest[1:SHOWN]]
    examples += [f"{key}: {unlike[key]}" for key in list(unlike)[:SHOWN]]
    examples += [f"{key}: only {side}" for side, keys in only.items() for key in keys[:SHOWN]]
    facts = {
        "tensors": len(common),
        "first": next(iter(distances), None),
        # JSON has no numbers for what is not finite.
        "largest_difference": {
            key: value if math.isfinite(value := distances[key]) else str(value) for key in largest
        },
        "of_another_type": unlike,
        "only": only,
    }
    summary = ", ".join(parts) or "the weights are bit-identical"
    return Finding(name, summary, tuple(examples), facts)


def find_distance(left: np.ndarray[Any, Any], right: np.ndarray[Any, Any]) -> float:
    """The largest absolute difference of two arrays; nan where only one of two is a number."""
    import numpy as np

    ours, theirs = (side.ravel().astype("f8") for side in (left, right))
    equal = (ours == theirs) | (np.isnan(ours) & np.isnan(theirs))
    with np.errstate(invalid="ignore"):
        return float(np.max(np.abs(ours - theirs), where=~equal, initial=0.0))


def _rank(distance: float) -> float:
    return math.inf if math.isnan(distance) else distance


def _describe(tensor: StoredTensor) -> str:
    return f"{tensor.type} {list(tensor.shape)}"
