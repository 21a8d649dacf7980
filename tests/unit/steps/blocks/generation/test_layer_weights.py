"""Sampling a model with adapters: from the weights that training has now, and never from others."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from nemotron_style.steps.blocks.checkpoint.families.tensors import import_tensor
from nemotron_style.steps.blocks.checkpoint.hf_weights import hf_names
from nemotron_style.steps.blocks.checkpoint.safetensors_folder import TensorFolder
from nemotron_style.steps.blocks.generation import packed_linear
from nemotron_style.steps.blocks.generation.engine import Engine
from nemotron_style.steps.blocks.generation.logprob_gap import measure_sample_gap
from nemotron_style.steps.blocks.generation.packed_linear import AdaptedLinear
from nemotron_style.steps.blocks.generation.sampling_params import SamplingParams
from nemotron_style.steps.blocks.generation.vllm_weights import Files
from nemotron_style.steps.blocks.model.language_model import build_model
from nemotron_style.steps.blocks.model.lora import adapted_layers, adapters_off, apply_lora
from nemotron_style.steps.blocks.model.parallel import initialize
from nemotron_style.steps.blocks.settings.generation_config import sampler_limit
from nemotron_style.steps.blocks.settings.model_config import ModelConfig
from nemotron_style.steps.blocks.settings.peft_config import LoraTuning

CONFIG = ModelConfig(
    num_layers=2,
    hidden_size=32,
    ffn_hidden_size=64,
    num_attention_heads=4,
    num_query_groups=2,
    vocab_size=24,
    max_sequence_length=48,
)
LORA = LoraTuning(target_modules=["all"], adapter_dim=4, row_init_method="normal")
PROMPTS = [[3, 5, 7, 2], [9, 9, 1]]
SAMPLING = SamplingParams(max_new_tokens=12)


@pytest.fixture(autouse=True)
def packs_small_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    initialize(seed=1)
    monkeypatch.setattr(packed_linear, "PACKED_FROM", 1)


def make_model(dtype: torch.dtype = torch.float32) -> nn.Module:
    model = build_model(CONFIG, seed=3, dtype=dtype, ddp=False, initial=0.2)
    apply_lora(model, LORA, seed=4)
    return model.eval()


def change_adapters(model: nn.Module) -> None:
    with torch.no_grad():
        for _, layer in adapted_layers(model):
            layer.lora_B.mul_(-1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_sampler_and_trainer_agree_after_every_change_of_the_adapters(dtype: torch.dtype) -> None:
    model = make_model(dtype)
    engine, limit = Engine(model, CONFIG), sampler_limit("in_process", half=dtype != torch.float32)
    answers = []
    for _ in range(2):
        answers.append(engine.generate(PROMPTS, SAMPLING, samples_per_prompt=4, seed=1))
        measure_sample_gap(model, PROMPTS, answers[-1]).require(limit, engine="in_process")
        change_adapters(model)
    assert answers[0] != answers[1]
    with adapters_off(model):
        start = engine.generate(PROMPTS, SAMPLING, samples_per_prompt=4, seed=1)
        measure_sample_gap(model, PROMPTS, start).require(limit, engine="in_process")
    assert start not in answers


def test_only_weights_that_are_copied_anyway_are_summed_with_their_adapters() -> None:
    for dtype, is_beside in ((torch.float32, False), (torch.bfloat16, True)):
        engine = Engine(make_model(dtype), CONFIG)
        engine.decoder.read_weights()
        product = engine.decoder.layers[0].fc1
        assert isinstance(product, AdaptedLinear) == is_beside


def test_vllm_is_handed_the_sums(tmp_path: Path) -> None:
    model = make_model()
    files = Files(CONFIG, torch.float32, CONFIG.head_size)
    files.write_weights(model, tmp_path)
    folder, layers = TensorFolder(tmp_path), dict(adapted_layers(model))
    assert len(layers) == 8
    for name, layer in layers.items():
        parts = [folder.read(part) for part in hf_names(f"{name}.weight", CONFIG)]
        written: Tensor = import_tensor(f"{name}.weight", parts, CONFIG)
        assert layer.lora
        expected = layer.weight + layer.lora.scale * layer.lora_B @ layer.lora_A
        assert torch.allclose(written, expected, atol=1e-6)
