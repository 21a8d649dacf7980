"""A model copied one tensor at a time: the same files, the same logits, and little memory."""

from __future__ import annotations

import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint.filesystem as filesystem
from torch import Tensor

from nemotron_style.runtime.errors import StepFailed
from nemotron_style.runtime.store.digest import digest_tree
from nemotron_style.steps.blocks.checkpoint.logit_parity import model_logits, sample_rows
from nemotron_style.steps.blocks.checkpoint.model_checkpoint import (
    WEIGHTS,
    copy_model,
    full_weights,
    save_model,
)
from nemotron_style.steps.blocks.checkpoint.streamed_model import stream_model
from nemotron_style.steps.blocks.checkpoint.torch_dist_stream import (
    Read,
    WeightFolder,
    open_tensors,
)
from nemotron_style.steps.blocks.model.language_model import build_model
from nemotron_style.steps.blocks.model.parallel import initialize
from nemotron_style.steps.blocks.settings.model_config import ModelConfig
from small_model import ONE_LAYER

CONFIG = ONE_LAYER.model_copy(update={"num_layers": 6, "hidden_size": 32, "ffn_hidden_size": 40})
TIED = CONFIG.model_copy(update={"tie_embeddings": True})


@pytest.fixture
def tokenizer(tmp_path: Path) -> Path:
    folder = tmp_path / "words"
    folder.mkdir()
    (folder / "tokenizer.json").write_text('{"version": "1.0"}')
    return folder


def write(path: Path, tokenizer: Path, config: ModelConfig) -> torch.nn.Module:
    initialize(seed=1)
    model = build_model(config, ddp=False)
    save_model(model, path, config=config, tokenizer=tokenizer)
    return model


def frugal(read: Read) -> Read:
    """``read`` that fails where more than two tensors of those that it gave are still held."""
    given: list[weakref.ref[Tensor]] = []

    def counted(name: str) -> Tensor:
        assert sum(ref() is not None for ref in given) <= 2
        tensor = read(name)
        given.append(weakref.ref(tensor))
        return tensor

    return counted


@pytest.mark.parametrize("config", [CONFIG, TIED])
def test_the_files_are_those_of_a_model_that_is_held(
    tmp_path: Path, tokenizer: Path, config: ModelConfig
) -> None:
    write(tmp_path / "held", tokenizer, config)
    folder = WeightFolder(tmp_path / "held" / WEIGHTS)
    read = frugal(folder.read)
    copy_model(read, tmp_path / "copied", config=config, dtype=torch.float32, tokenizer=tokenizer)
    copied, held = (digest_tree(tmp_path / name) for name in ("copied", "held"))
    assert copied == held
    weights = dict(folder.weights())
    assert {name: (part.shape, part.dtype) for name, part in folder.outline()} == {
        name: (part.shape, part.dtype) for name, part in weights.items()
    }


def test_a_machine_with_a_card_writes_the_same_files(
    tmp_path: Path, tokenizer: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There torch would ask for the next tensors before it has written the last."""
    write(tmp_path / "held", tokenizer, CONFIG)
    read = WeightFolder(tmp_path / "held" / WEIGHTS).read
    monkeypatch.setattr(filesystem, "_OverlappingCpuLoader", AskingAhead)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    copy_model(read, tmp_path / "copied", config=CONFIG, dtype=torch.float32, tokenizer=tokenizer)
    monkeypatch.undo()
    assert digest_tree(tmp_path / "copied") == digest_tree(tmp_path / "held")


class AskingAhead(filesystem._SerialCpuLoader):
    """Resolves every tensor before it gives the first, as torch's loader does up to 10 MB."""

    def __init__(self, resolve: Any, **_options: Any) -> None:
        super().__init__(resolve)

    def values(self) -> Any:
        return iter(list(super().values()))


@pytest.mark.parametrize("config", [CONFIG, TIED])
def test_the_logits_are_those_of_a_model_that_is_held(
    tmp_path: Path, tokenizer: Path, config: ModelConfig
) -> None:
    model = write(tmp_path / "held", tokenizer, config)
    rows = sample_rows(config.vocab_size, rows=2, tokens=9, seed=1)
    read = frugal(WeightFolder(tmp_path / "held" / WEIGHTS).read)
    streamed = stream_model(config, read)
    assert torch.equal(model_logits(streamed, rows), model_logits(model.double(), rows))
    assert all(weight.is_meta for weight in streamed.parameters())


def test_numbers_that_are_not_finite_are_not_written(tmp_path: Path, tokenizer: Path) -> None:
    initialize(seed=1)
    weights = dict(full_weights(build_model(CONFIG, ddp=False)))
    name = "decoder.layers.3.mlp.linear_fc1.weight"
    weights[name][-1, -1] = torch.inf
    with pytest.raises(StepFailed, match=f"{name}: tensors hold numbers that are not finite"):
        copy_model(
            weights.__getitem__,
            tmp_path / "broken",
            config=CONFIG,
            dtype=torch.float32,
            tokenizer=tokenizer,
        )


def test_tensors_are_read_one_by_one_for_whoever_compares_two_models(
    tmp_path: Path, tokenizer: Path
) -> None:
    model = write(tmp_path / "held", tokenizer, CONFIG)
    opened = open_tensors(tmp_path / "held" / WEIGHTS)
    weights = dict(full_weights(model))
    assert sorted(opened) == sorted(weights)
    for name, stored in opened.items():
        assert (stored.type, stored.shape) == ("torch.float32", tuple(weights[name].shape))
        assert stored.read().tobytes() == weights[name].numpy().tobytes()
