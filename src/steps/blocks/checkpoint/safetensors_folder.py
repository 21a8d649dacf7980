"""Folders of safetensors files: one file, or many with an index, as Hugging Face lays them out."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from nemotron_style.runtime.errors import InputError, Problem, StepFailed, raise_all
from nemotron_style.steps.blocks.checkpoint.finite import (
    describe_nonfinite,
    find_nonfinite,
    is_finite,
)

SUFFIX, SINGLE = ".safetensors", "model.safetensors"
INDEX = "model.safetensors.index.json"
TYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
"""The types of weights that are read, by the names that safetensors has for them."""
_NAMES = {kind: name for name, kind in TYPES.items()}
_ORDER = (torch.float16, torch.bfloat16, torch.float32)


class TensorFolder:
    """The tensors of a folder by name, each read when it is asked for.

    A folder of a model has one file, or an index of several; ``file`` names the only one of another
    folder.

    Raises:
        InputError: there are no safetensors (but pickles, say), a file is missing or damaged, the
            index points outside the folder, or a tensor is of a type that is no weight's or holds
            numbers that are not finite.
    """

    def __init__(self, path: Path, file: str | None = None) -> None:
        self.path = path
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.types: dict[str, torch.dtype] = {}
        self._files: dict[str, Path] = {}
        named = {} if file else _read_index(path)
        problems = []
        for name in sorted(set(named.values())) if named else [file or SINGLE]:
            problems += self._open(name)
        missing = sorted(set(named) - set(self.shapes))
        what = "the index says that this file holds the tensor"
        problems += [
            Problem(where=str(path / named[name]), key=name, what=what)
            for name in ([] if problems else missing)
        ]
        raise_all(InputError, problems)

    def read(self, name: str) -> Tensor:
        """The tensor called ``name``, whole, on the CPU."""
        try:
            # Opened for each: a file that stays open stays in memory, as far as it was read.
            with safe_open(self._files[name], framework="pt") as handle:
                tensor: Tensor = handle.get_tensor(name)
        except (SafetensorError, OSError) as error:
            raise InputError(
                Problem(where=str(self.path), key=name, what="cannot be read", got=str(error))
            ) from error
        if not is_finite(tensor):
            raise InputError(describe_nonfinite([name], where=str(self.path)))
        return tensor

    def drop(self, name: str) -> None:
        """Treat the folder as if it did not hold the tensor ``name``."""
        del self.shapes[name], self.types[name], self._files[name]

    def _open(self, name: str) -> list[Problem]:
        """Take up the tensors of one file; the problems with it."""
        file = self.path / name
        try:
            with safe_open(file, framework="pt") as handle:
                slices = {key: handle.get_slice(key) for key in handle.keys()}  # noqa: SIM118
                found = {key: (part.get_dtype(), part.get_shape()) for key, part in slices.items()}
        except (SafetensorError, OSError) as error:
            return [Problem(where=str(file), what="is no safetensors file", got=_first(error))]
        what = "the tensor is in another file of the model too"
        twice = [
            Problem(where=str(file), key=key, what=what, got=self._files[key].name)
            for key in found
            if key in self._files
        ]
        strange = {key: kind for key, (kind, _) in found.items() if kind not in TYPES}
        for key, (kind, shape) in found.items():
            self.shapes[key], self._files[key] = tuple(shape), file
            self.types[key] = TYPES.get(kind, torch.float32)
        return twice + [
            Problem(
                where=str(file),
                key=key,
                what="quantised weights cannot be converted",
                got=kind,
                allowed=", ".join(TYPES),
                fix="dequantise the model first",
            )
            for key, kind in strange.items()
        ]


def write_tensors(
    path: Path,
    units: Iterable[Mapping[str, Tensor]],
    *,
    max_bytes: int,
    outline: Iterable[Mapping[str, Tensor]] | None = None,
) -> None:
    """Write tensors to a folder as Hugging Face reads them.

    What is in one unit goes to one file; a file holds at most ``max_bytes``, or one unit when
    that alone is larger. ``outline`` is the same units without memory, on the device ``meta``:
    with it one unit is held at a time; without it all of them are. The bytes depend on the
    tensors, their order and ``max_bytes`` alone. Raises StepFailed for a tensor that holds numbers
    which are not finite.
    """
    if outline is None:
        outline = units = list(units)
    files = _divide(outline, max_bytes)
    waiting = iter(units)
    try:
        for number, outlines in enumerate(files):
            _write(path / _draft_name(number), outlines, waiting)
    except StepFailed:
        for number in range(len(files)):
            (path / _draft_name(number)).unlink(missing_ok=True)
        raise
    names = [_final_name(number, len(files)) for number in range(len(files))]
    for number, name in enumerate(names):
        (path / _draft_name(number)).rename(path / name)
    if len(files) > 1:
        weight_map = {key: name for name, keys in zip(names, files, strict=True) for key in keys}
        total = sum(map(_size, files))
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
        (path / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _divide(units: Iterable[Mapping[str, Tensor]], max_bytes: int) -> list[dict[str, Tensor]]:
    """The tensors of each file."""
    files: list[dict[str, Tensor]] = [{}]
    for unit in units:
        if files[-1] and _size(files[-1]) + _size(unit) > max_bytes:
            files.append({})
        files[-1] |= unit
    return files


def write_file(file: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write one file of tensors. Raises StepFailed as :func:`write_tensors` does."""
    _write(file, tensors, iter([tensors]))


def _write(
    file: Path, outline: Mapping[str, Tensor], units: Iterator[Mapping[str, Tensor]]
) -> None:
    """Write the units that ``outline`` has the tensors of, each where the header says it is.

    A safetensors file is the length of a header, the header as JSON, and the numbers.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    # in the library's order, so that the file is the one that it would write
    for name in sorted(outline, key=lambda name: (-_ORDER.index(outline[name].dtype), name)):
        part, begin = outline[name], end
        end += part.nbytes
        kind, shape = _NAMES[part.dtype], list(part.shape)
        header[name] = {"dtype": kind, "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    with file.open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        missing = set(outline)
        while missing:
            unit = next(units)
            if names := find_nonfinite(unit.items()):
                raise StepFailed(describe_nonfinite(names, where=str(file.parent)))
            for name in unit:
                stream.seek(8 + len(text) + header[name]["data_offsets"][0])
                stream.write(_bytes(unit[name]))
            missing -= unit.keys()
            del unit  # before the next one is made
    file.chmod(0o666 & file.parent.stat().st_mode)  # for whoever may read the folder


def _bytes(tensor: Tensor) -> memoryview:
    """A tensor's numbers as they lie in memory; numpy has no bfloat16."""
    return tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data


def _draft_name(number: int) -> str:
    return f"{number}.part"


def _final_name(number: int, count: int) -> str:
    return SINGLE if count == 1 else f"model-{number + 1:05d}-of-{count:05d}.safetensors"


def _size(tensors: Mapping[str, Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors.values())


def _read_index(path: Path) -> dict[str, str]:
    """Which file holds which tensor; empty where one file holds them all."""
    file = path / INDEX
    if not file.is_file():
        if not (path / SINGLE).is_file():
            raise InputError(_explain_absence(path))
        return {}
    try:
        named = json.loads(file.read_text(encoding="utf-8"))["weight_map"]
        files = [Path(name) for name in named.values()]
        inside = [file.name == str(file) and file.suffix == SUFFIX for file in files]
        sound = bool(named) and all(inside)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        sound = False
    if not sound:
        what = "is not an index of files in this folder"
        raise InputError(Problem(where=str(file), key="weight_map", what=what))
    return dict(named)


def _explain_absence(path: Path) -> Problem:
    allowed = f"{SINGLE}, or {INDEX} with its files"
    if found := sorted(path.glob(f"*{SUFFIX}")):
        what = "no index says which of these files hold the model"
        names = ", ".join(file.name for file in found[:3]) + (", ..." if len(found) > 3 else "")
        return Problem(where=str(path), key=INDEX, what=what, got=names, allowed=allowed)
    pickles = sorted([*path.glob("*.bin"), *path.glob("*.pt"), *path.glob("*.pth")])
    if not pickles:
        return Problem(where=str(path), key=SINGLE, what="there are no weights")
    save = "AutoModelForCausalLM.from_pretrained(old, dtype='auto').save_pretrained(new)"
    return Problem(
        where=str(pickles[0]),
        what="pickled weights are not read: a pickle can run any code",
        allowed=allowed,
        fix=f'where you trust the file: python -c "from transformers import AutoModelForCausalLM; '
        f"old, new = {str(path)!r}, 'model-folder'; {save}\", and copy the tokenizer's files",
    )


def _first(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
