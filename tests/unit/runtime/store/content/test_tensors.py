"""Tensors that differ between two checkpoints."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from nemotron_style.runtime.errors import ArtifactError
from nemotron_style.runtime.store.content.finding import Finding
from nemotron_style.runtime.store.content.tensors import (
    compare_tensors,
    find_distance,
    open_safetensors,
)

TYPES = (torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.bool)


def save(folder: Path, tensors: dict[str, torch.Tensor], name: str = "model") -> Path:
    folder.mkdir(exist_ok=True)
    save_file(tensors, folder / f"{name}.safetensors")
    return folder


def compare(left: Path, right: Path) -> Finding:
    return compare_tensors(open_safetensors(left), open_safetensors(right), name="weights")


def test_every_type_is_read_as_torch_wrote_it(tmp_path: Path) -> None:
    written = {str(kind): torch.tensor([[0, 1], [1, 3]]).to(kind) for kind in TYPES}
    written["empty"], written["alone"] = torch.empty(0, 3), torch.tensor(2.5)
    read = open_safetensors(save(tmp_path / "a", written))
    for name, tensor in written.items():
        assert read[name].shape == tuple(tensor.shape)
        assert read[name].read().tolist() == tensor.flatten().tolist()


def test_the_largest_difference_comes_first(tmp_path: Path) -> None:
    base = {name: torch.zeros(4, dtype=torch.bfloat16) for name in "abcd"}
    other = {**base, "b": base["b"] + 0.5, "c": base["c"] - 2}
    found = compare(save(tmp_path / "l", base), save(tmp_path / "r", other))
    assert found.summary == "2 of 4 tensors differ, at most by 2 (c)"
    assert found.examples == ("b: by 0.5",)
    assert found.facts["first"] == "b"
    assert found.facts["largest_difference"] == {"c": 2.0, "b": 0.5}


def test_shards_are_one_set_of_tensors(tmp_path: Path) -> None:
    base = {name: torch.arange(3.0) for name in "ab"}
    save(tmp_path / "r", {"a": base["a"]}, "model-1")
    save(tmp_path / "r", {"b": base["b"]}, "model-2")
    found = compare(save(tmp_path / "l", base), tmp_path / "r")
    assert found.summary == "the weights are bit-identical"


def test_other_names_and_shapes_are_said(tmp_path: Path) -> None:
    left = {"a": torch.zeros(2), "old": torch.zeros(1)}
    right = {"a": torch.zeros(3), "new": torch.zeros(1)}
    found = compare(save(tmp_path / "l", left), save(tmp_path / "r", right))
    assert found.examples == ("a: F32 [2] -> F32 [3]", "old: only left", "new: only right")


def test_what_is_not_finite_is_a_difference_only_where_it_is_one() -> None:
    nan, inf = math.nan, math.inf
    assert find_distance(np.array([nan, 1.0, inf]), np.array([nan, 2.0, inf])) == 1.0
    assert math.isnan(find_distance(np.array([nan]), np.array([0.0])))
    assert find_distance(np.array([inf]), np.array([-inf])) == inf


@pytest.mark.parametrize(
    "content",
    [b"", b"\xff" * 8, b"\x02" + b"\0" * 7 + b"[]", b"\x10" + b"\0" * 7 + b'{"a":{"dtype":1}'],
)
def test_a_damaged_file_is_said_to_be_one(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(ArtifactError, match="is not a safetensors file"):
        open_safetensors(tmp_path)


def test_a_file_that_was_cut_is_said_to_be_one(tmp_path: Path) -> None:
    path = save(tmp_path / "a", {"a": torch.zeros(100)}) / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(ArtifactError, match="is shorter than its table says"):
        open_safetensors(tmp_path / "a")["a"].read()
