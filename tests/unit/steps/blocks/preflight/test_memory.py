"""The memory of a process follows from the sizes of its model and how it is divided."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from nemotron_style.steps.blocks.model.language_model import build_model
from nemotron_style.steps.blocks.model.logprob import response_logprobs
from nemotron_style.steps.blocks.model.norm import RMSNorm
from nemotron_style.steps.blocks.model.parallel import initialize
from nemotron_style.steps.blocks.model.prefix_packing import Row, pack_rows
from nemotron_style.steps.blocks.preflight.memory import (
    Load,
    count_adapters,
    count_parameters,
    estimate_memory,
    show_count,
)
from nemotron_style.steps.blocks.settings.model_config import ModelConfig
from nemotron_style.steps.blocks.settings.parallel_config import Activations
from nemotron_style.steps.blocks.settings.peft_config import LoraTuning

# Llama 3.1 8B, which has 8,030,261,248 weights with its norms
SIZES = ModelConfig(
    num_layers=32,
    hidden_size=4096,
    ffn_hidden_size=14336,
    num_attention_heads=32,
    num_query_groups=8,
    vocab_size=128256,
    max_sequence_length=131072,
)
BF16 = Load(half=True, pass_rows=1, row_tokens=4096)


def test_weights_are_counted_but_for_norms() -> None:
    assert count_parameters(SIZES) == 8_030_261_248 - 65 * 4096
    assert show_count(count_parameters(SIZES)) == "8.03 billion"


def test_training_in_bfloat16_takes_18_bytes_a_weight_and_12_of_them_are_shared() -> None:
    alone = estimate_memory(SIZES, BF16)
    assert alone.certain.total == 18 * count_parameters(SIZES)
    eight = estimate_memory(SIZES, replace(BF16, data=8, spread_optimizer=True))
    assert eight.certain.total == (6 + 12 / 8) * count_parameters(SIZES)
    assert (eight.weights, eight.gradients) == (alone.weights, alone.gradients)


def test_training_in_float32_takes_16_bytes_a_weight() -> None:
    assert estimate_memory(SIZES, Load(half=False)).certain.total == 16 * count_parameters(SIZES)


def test_tensor_parallel_divides_all_of_it() -> None:
    divided = estimate_memory(SIZES, replace(BF16, tensor=4))
    assert divided.certain.total == 18 * count_parameters(SIZES) // 4
    assert divided.activations < estimate_memory(SIZES, BF16).activations


def test_a_pipeline_holds_as_many_activations_and_fewer_weights() -> None:
    whole, staged = estimate_memory(SIZES, BF16), estimate_memory(SIZES, replace(BF16, pipeline=4))
    assert staged.certain.total < whole.certain.total / 2
    assert staged.activations == whole.activations


def test_sampling_keeps_keys_and_values_and_no_gradients() -> None:
    load = Load(half=True, trains=False, sampled_rows=16, row_tokens=1000)
    memory = estimate_memory(SIZES, load)
    assert memory.cache == 16 * 1000 * 32 * 2 * 8 * 128 * 2
    assert memory.certain.total == memory.weights == 2 * count_parameters(SIZES)
    assert str(memory) == "18.2 GB (weights 16.1, key-value cache 2.1)"


def test_an_engine_of_its_own_and_a_divided_model_take_the_weights_once_more() -> None:
    load = Load(half=True, trains=False, sampled_rows=4, row_tokens=100)
    whole = 2 * count_parameters(SIZES)
    assert estimate_memory(SIZES, load).sampler == 0
    for other in ({"samples_apart": True}, {"tensor": 2}, {"on_cpu": True}):
        assert estimate_memory(SIZES, replace(load, **other)).sampler == whole
    frozen = estimate_memory(SIZES, replace(load, tensor=4, frozen=1))
    assert frozen.reference == frozen.weights == whole // 4
    assert "reference model 4.0, weights to sample from 16.1" in str(frozen)


def test_of_adapters_alone_gradients_and_moments_are_kept() -> None:
    """Rank 16 on every linear layer of Llama 3.1 8B: 41,943,040 weights, as peft counts them."""
    lora = LoraTuning(target_modules=["all"], adapter_dim=16)
    shared = 16 * 32 * (4096 + 14336)  # q, k and v have one A here, and gate and up
    assert 32 * count_adapters(SIZES, lora) == 41_943_040 - 16 * 32 * 3 * 4096
    assert shared
    memory = estimate_memory(SIZES, replace(BF16, lora=lora))
    adapters = 32 * count_adapters(SIZES, lora)
    assert memory.weights == 2 * (count_parameters(SIZES) + adapters)
    assert (memory.gradients, memory.optimizer) == (4 * adapters, 12 * adapters)


@pytest.mark.parametrize("activation", ["swiglu", "squared_relu"])
def test_activations_are_those_that_torch_keeps(
    activation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The difference of three layers and two, in what is saved for the backward pass."""
    # As on a GPU: the norm with a gradient of its own, on the CPU alone, keeps less.
    monkeypatch.setattr(RMSNorm, "forward", torch.nn.RMSNorm.forward)
    initialize(seed=1)
    sizes = ModelConfig(
        num_layers=2,
        hidden_size=64,
        ffn_hidden_size=160,
        num_attention_heads=4,
        num_query_groups=2,
        vocab_size=64,
        max_sequence_length=64,
        activation=activation,
    )
    tokens = 64
    deeper = sizes.model_copy(update={"num_layers": 3})
    kept = count_saved(deeper) - count_saved(sizes)
    load = Load(half=False, row_tokens=tokens)
    two, three = (estimate_memory(each, load).activations for each in (sizes, deeper))
    assert three - two == pytest.approx(kept, rel=0.02)


def count_saved(sizes: ModelConfig) -> int:
    """Bytes that a forward pass of one row of 64 tokens leaves for the backward pass."""
    model = build_model(sizes, ddp=False)
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    saved: dict[int, torch.UntypedStorage] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            saved[storage.data_ptr()] = storage
        return tensor

    batch = pack_rows([Row(list(range(64)), [False] + [True] * 63)])
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        response_logprobs(model, batch)
    return sum(storage.nbytes() for storage in saved.values())


def test_recomputation_keeps_what_goes_into_its_layers() -> None:
    whole = estimate_memory(SIZES, BF16).activations
    each, fours, half = (
        estimate_memory(SIZES, replace(BF16, activations=way)).activations
        for way in (
            Activations(recompute_method="uniform"),
            Activations(False, "uniform", 4),
            Activations(False, "block", 16),
        )
    )
    assert each < fours < half < whole
    embedding = 128256 * 4096 * 2
    layer = (whole - embedding) // 32
    assert each - embedding == 32 * 4096 * 4096 * 2 + layer


def test_sequence_parallel_divides_what_tensor_ranks_would_all_hold() -> None:
    divided = replace(BF16, tensor=4)
    shared = replace(divided, activations=Activations(sequence_parallel=True))
    more, less = estimate_memory(SIZES, divided), estimate_memory(SIZES, shared)
    assert less.activations < more.activations
    assert less.certain == more.certain
