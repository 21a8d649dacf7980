"""Folders of safetensors files: one file, or many with an index, as Hugging Face lays them out."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
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


class TensorFolder:
    """The tensors of a folder by name, each read when it is asked for.

    Raises:
        InputError: there are no safetensors (but pickles, say), a file is missing or damaged, the
            index points outside the folder, or a tensor is of a type that is no weight's or holds
            numbers that are not finite.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.types: dict[str, torch.dtype] = {}
        self._files: dict[str, Any] = {}
        named = _read_index(path)
        problems = []
        for file in sorted(set(named.values())) if named else [SINGLE]:
            problems += self._open(file)
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
            tensor: Tensor = self._files[name].get_tensor(name)
        except SafetensorError as error:
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
            handle = safe_open(file, framework="pt")
            found = {key: handle.get_slice(key) for key in handle.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            return [Problem(where=str(file), what="is no safetensors file", got=_first(error))]
        strange = {key: part.get_dtype() for key, part in found.items()}
        strange = {key: kind for key, kind in strange.items() if kind not in TYPES}
        for key, part in found.items():
            self.shapes[key], self._files[key] = tuple(part.get_shape()), handle
            self.types[key] = TYPES.get(part.get_dtype(), torch.float32)
        return [
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


def write_tensors(path: Path, units: Iterable[Mapping[str, Tensor]], *, max_bytes: int) -> None:
    """Write tensors to a folder as Hugging Face reads them.

    What is in one unit goes to one file; a file holds at most ``max_bytes``, or one unit when
    that alone is larger. The bytes depend on the tensors, their order and ``max_bytes`` alone.
    Raises StepFailed for a tensor that holds numbers which are not finite.
    """
    files: list[list[str]] = []
    waiting: dict[str, Tensor] = {}
    total = 0
    for unit in units:
        if waiting and _size(waiting) + _size(unit) > max_bytes:
            files.append(_write(path, waiting, len(files)))
            waiting = {}
        waiting |= unit
        total += _size(unit)
    files.append(_write(path, waiting, len(files)))
    names = [_final_name(number, len(files)) for number in range(len(files))]
    for number, name in enumerate(names):
        (path / _draft_name(number)).rename(path / name)
    if len(files) > 1:
        named = {key: name for name, keys in zip(names, files, strict=True) for key in keys}
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(named.items()))}
        (path / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _write(path: Path, tensors: dict[str, Tensor], number: int) -> list[str]:
    if names := find_nonfinite(tensors.items()):
        raise StepFailed(describe_nonfinite(names, where=str(path)))
    file = path / _draft_name(number)
    save_file(tensors, file, metadata={"format": "pt"})
    file.chmod(0o666 & path.stat().st_mode)  # the library leaves it to its owner alone
    return list(tensors)


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
    pickles = sorted([*path.glob("*.bin"), *path.glob("*.pt"), *path.glob("*.pth")])
    if not pickles:
        return Problem(where=str(path), key=SINGLE, what="there are no weights")
    return Problem(
        where=str(pickles[0]),
        what="pickled weights are not read: a pickle can run any code",
        allowed=f"{SINGLE}, or {INDEX} with its files",
        fix="save the model as safetensors where you trust it",
    )


def _first(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
