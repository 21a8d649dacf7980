"""Folders of safetensors: shards, their index, and what is refused instead of read."""

from __future__ import annotations

import json
import struct
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from nemotron_style.runtime.errors import InputError
from nemotron_style.steps.blocks.checkpoint.safetensors_folder import (
    INDEX,
    SINGLE,
    TensorFolder,
    write_tensors,
)

UNIT = 3000  # bytes of the two tensors of a unit


def units() -> list[dict[str, Tensor]]:
    draw = torch.Generator().manual_seed(2)
    return [
        {
            f"model.{n}.up.weight": torch.randn(20, 25, generator=draw),
            f"model.{n}.down.weight": torch.randn(500, generator=draw).bfloat16(),
        }
        for n in range(12)
    ]


def write(path: Path, *, limit: int = 1 << 30) -> Path:
    path.mkdir()
    write_tensors(path, units(), max_bytes=limit)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write(tmp_path / "one")


def refused(read: Callable[[], object]) -> str:
    with pytest.raises(InputError) as caught:
        read()
    return str(caught.value)


def test_what_is_written_is_read_and_types_stay(folder):
    tensors = TensorFolder(folder)
    assert [path.name for path in folder.iterdir()] == [SINGLE]
    for unit in units():
        for name, tensor in unit.items():
            assert tensors.shapes[name] == tuple(tensor.shape)
            assert tensors.types[name] == tensor.dtype
            assert torch.equal(tensors.read(name), tensor)


@pytest.mark.parametrize("limit", [1, UNIT, 3 * UNIT + 1, 11 * UNIT])
def test_shards_hold_whole_units_up_to_their_size(tmp_path, limit):
    folder = write(tmp_path / "many", limit=limit)
    units_of_a_file = max(1, limit // UNIT)
    count = -(-12 // units_of_a_file)
    names = [f"model-{n + 1:05d}-of-{count:05d}.safetensors" for n in range(count)]
    assert sorted(path.name for path in folder.iterdir()) == [*names, INDEX]
    index = json.loads((folder / INDEX).read_text())
    assert index["metadata"]["total_size"] == 12 * UNIT
    wanted = {name: number for number, unit in enumerate(units()) for name in unit}
    assert index["weight_map"] == {
        name: names[number // units_of_a_file] for name, number in wanted.items()
    }
    tensors = TensorFolder(folder)
    for unit in units():
        assert all(torch.equal(tensors.read(name), tensor) for name, tensor in unit.items())


def test_the_same_tensors_make_the_same_bytes(tmp_path):
    one, two = (write(tmp_path / name, limit=10_000) for name in ("one", "two"))
    names = sorted(path.name for path in one.iterdir())
    assert names == sorted(path.name for path in two.iterdir())
    assert all((one / name).read_bytes() == (two / name).read_bytes() for name in names)


def test_a_file_is_the_one_that_the_library_writes(folder, tmp_path):
    tensors = {name: tensor for unit in units() for name, tensor in unit.items()}
    tensors["half"] = torch.ones(3).half()
    write_tensors(folder, [tensors], max_bytes=1 << 30)
    save_file(tensors, tmp_path / "theirs", metadata={"format": "pt"})
    assert (folder / SINGLE).read_bytes() == (tmp_path / "theirs").read_bytes()


def test_one_unit_is_held_at_a_time(tmp_path):
    """With an outline, every unit is gone before the next one is made."""
    alive: list[weakref.ref[Tensor]] = []

    def one_by_one() -> Iterator[dict[str, Tensor]]:
        left = units()
        while left:
            assert not any(ref() is not None for ref in alive)
            unit = left.pop(0)
            alive.extend(map(weakref.ref, unit.values()))
            yield unit
            del unit

    outline = [{name: one.to("meta") for name, one in unit.items()} for unit in units()]
    for name, limit in (("one", 1 << 30), ("many", 3 * UNIT)):
        (tmp_path / name).mkdir()
        write_tensors(tmp_path / name, one_by_one(), max_bytes=limit, outline=outline)
        other = write(tmp_path / f"{name} held", limit=limit)
        for file in other.iterdir():
            assert file.read_bytes() == (tmp_path / name / file.name).read_bytes()


def test_a_tensor_in_two_files_is_refused(tmp_path):
    folder = write(tmp_path / "hf", limit=10_000)
    first, second = sorted(folder.glob("*.safetensors"))[:2]
    tensors = load_file(second) | {"model.0.up.weight": torch.zeros(20, 25)}
    save_file(tensors, second)
    said = refused(lambda: TensorFolder(folder))
    assert f"{second}: model.0.up.weight: the tensor is in another file" in said
    assert f"got {first.name}" in said


def test_shards_without_an_index_are_refused_by_name(tmp_path):
    folder = write(tmp_path / "hf", limit=10_000)
    (folder / INDEX).unlink()
    said = refused(lambda: TensorFolder(folder))
    assert f"{INDEX}: no index says which" in said
    assert "model-00001-of-00004.safetensors" in said


@pytest.mark.parametrize("offsets", [[[0, 8], [4, 12]], [[0, 8], [12, 20]], [[0, 8], [8, 12]]])
def test_tensors_that_overlap_or_leave_gaps_are_refused(folder, offsets):
    header = {
        name: {"dtype": "F32", "shape": [2], "data_offsets": span}
        for name, span in zip("ab", offsets, strict=True)
    }
    text = json.dumps(header).encode()
    (folder / SINGLE).write_bytes(struct.pack("<Q", len(text)) + text + bytes(offsets[1][1]))
    assert "is no safetensors file" in refused(lambda: TensorFolder(folder))


@pytest.mark.parametrize("mode", [0o755, 0o700])
def test_files_can_be_read_by_whoever_may_read_the_folder(tmp_path, mode):
    (tmp_path / "x").mkdir()
    (tmp_path / "x").chmod(mode)
    write_tensors(tmp_path / "x", units(), max_bytes=1 << 30)
    assert (tmp_path / "x" / SINGLE).stat().st_mode & 0o777 == 0o666 & mode


def test_pickled_weights_are_refused_by_name(folder):
    (folder / SINGLE).rename(folder / "pytorch_model.bin")
    said = refused(lambda: TensorFolder(folder))
    assert "pytorch_model.bin" in said
    assert "pickle" in said


def test_a_folder_without_weights_says_so(tmp_path):
    assert "model.safetensors: there are no weights" in refused(lambda: TensorFolder(tmp_path))


@pytest.mark.parametrize("length", [0, 7, 100, -4])
def test_a_damaged_file_is_refused(folder, length):
    file = folder / SINGLE
    file.write_bytes(file.read_bytes()[:length])
    said = refused(lambda: TensorFolder(folder))
    assert str(file) in said
    assert "is no safetensors file" in said


def test_quantised_tensors_are_refused_by_name(folder):
    tensors = load_file(folder / SINGLE)
    tensors["model.1.up.weight"] = tensors["model.1.up.weight"].to(torch.float8_e4m3fn)
    tensors["model.2.up.weight"] = tensors["model.2.up.weight"].to(torch.int8)
    save_file(tensors, folder / SINGLE)
    said = refused(lambda: TensorFolder(folder))
    assert f"{folder / SINGLE}: model.1.up.weight: quantised weights cannot be converted" in said
    assert "got F8_E4M3; allowed: F32, F16, BF16" in said
    assert "model.2.up.weight" in said


@pytest.mark.parametrize(
    "named",
    ["../elsewhere.safetensors", "/etc/passwd", "a/b.safetensors", "", "..", "x.bin"],
    ids=repr,
)
def test_an_index_cannot_point_outside(folder, named):
    (folder / INDEX).write_text(json.dumps({"weight_map": {"model.norm.weight": named}}))
    assert "weight_map: is not an index" in refused(lambda: TensorFolder(folder))


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"weight_map": 3}', '{"weight_map": {"a": 1}}'])
def test_an_index_that_is_none_is_refused(folder, text):
    (folder / INDEX).write_text(text)
    assert "weight_map: is not an index" in refused(lambda: TensorFolder(folder))


def test_a_file_that_the_index_names_and_a_tensor_in_it_must_be_there(tmp_path):
    folder = write(tmp_path / "hf", limit=10_000)
    index = json.loads((folder / INDEX).read_text())
    name = next(folder.glob("*-00001-*")).name
    index["weight_map"]["model.more.weight"] = name
    (folder / INDEX).write_text(json.dumps(index))
    said = refused(lambda: TensorFolder(folder))
    assert f"{name}: model.more.weight: the index says" in said
    next(folder.glob("model-00002*")).unlink()
    said = refused(lambda: TensorFolder(folder))
    assert "model-00002-of" in said
    assert "is no safetensors file; got No such file" in said


def test_a_header_with_absurd_sizes_is_refused(folder):
    header = json.dumps({"a": {"dtype": "F32", "shape": [1 << 40], "data_offsets": [0, 1 << 42]}})
    (folder / SINGLE).write_bytes(struct.pack("<Q", len(header)) + header.encode())
    assert "is no safetensors file" in refused(lambda: TensorFolder(folder))
