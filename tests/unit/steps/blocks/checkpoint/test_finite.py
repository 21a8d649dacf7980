"""Numbers that are not finite: never written to a model or a state, never read as one."""

import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from nemotron_style.runtime.errors import InputError, StepFailed
from nemotron_style.steps.blocks.checkpoint import torch_dist
from nemotron_style.steps.blocks.checkpoint.finite import find_nonfinite, is_finite
from nemotron_style.steps.blocks.checkpoint.safetensors_folder import TensorFolder, write_tensors
from nemotron_style.steps.blocks.model import parallel
from nemotron_style.steps.blocks.model.language_model import build_model
from nemotron_style.steps.blocks.model.sharded_tensor import sharded_weights
from small_model import ONE_LAYER


@pytest.fixture(autouse=True, scope="module")
def _job():
    parallel.initialize()


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_one_number_among_many_is_found(value, dtype):
    tensor = torch.zeros(3, 5, dtype=dtype)
    assert is_finite(tensor)
    tensor[2, 4] = value
    assert not is_finite(tensor)
    assert find_nonfinite([("a", torch.ones(2)), ("b", tensor)]) == ["b"]


def test_what_has_no_number_is_finite():
    assert is_finite(torch.empty(0, 4))
    assert is_finite(torch.tensor([1, 2]))


def broken_model():
    model = build_model(ONE_LAYER, ddp=False)
    with torch.no_grad():
        model.decoder.layers[0].mlp.linear_fc2.weight[3, 1] = math.nan
    return model


def test_a_model_with_a_nan_is_not_written(tmp_path: Path):
    with pytest.raises(StepFailed, match=r"linear_fc2\.weight.*not finite"):
        torch_dist.write(sharded_weights(broken_model()), tmp_path / "weights")
    assert not (tmp_path / "weights").exists()


def test_a_checkpoint_with_a_nan_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with monkeypatch.context() as patch:
        patch.setattr(torch_dist, "_require_finite", lambda *_, **__: None)
        torch_dist.write(sharded_weights(broken_model()), tmp_path)
    with pytest.raises(InputError, match=r"linear_fc2\.weight.*not finite"):
        torch_dist.read(sharded_weights(build_model(ONE_LAYER, ddp=False)), tmp_path)


def test_a_hugging_face_folder_with_an_infinite_row_is_not_read(tmp_path: Path):
    embedding = torch.zeros(447, 8)
    embedding[446] = math.inf
    save_file({"model.embed_tokens.weight": embedding}, tmp_path / "model.safetensors")
    with pytest.raises(InputError, match=r"embed_tokens.*not finite"):
        TensorFolder(tmp_path).read("model.embed_tokens.weight")


def test_a_number_that_a_cast_makes_infinite_is_not_written(tmp_path: Path):
    large = torch.full((2, 2), 1e5)
    assert is_finite(large)
    with pytest.raises(StepFailed, match="a smaller type made them infinite"):
        write_tensors(tmp_path, [{"weight": large.half()}], max_bytes=1000)
    assert not any(tmp_path.iterdir())
