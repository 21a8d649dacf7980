"""The memory of a process follows from the sizes of its model and how it is divided."""

from __future__ import annotations

from dataclasses import replace

from nemotron_style.steps.blocks.preflight.memory import (
    Load,
    count_parameters,
    estimate_memory,
    show_count,
)
from nemotron_style.steps.blocks.settings.model_config import ModelConfig

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
    assert alone.certain == 18 * count_parameters(SIZES)
    eight = estimate_memory(SIZES, replace(BF16, data=8, spread_optimizer=True))
    assert eight.certain == (6 + 12 / 8) * count_parameters(SIZES)
    assert (eight.weights, eight.gradients) == (alone.weights, alone.gradients)


def test_training_in_float32_takes_16_bytes_a_weight() -> None:
    assert estimate_memory(SIZES, Load(half=False)).certain == 16 * count_parameters(SIZES)


def test_tensor_parallel_divides_all_of_it() -> None:
    divided = estimate_memory(SIZES, replace(BF16, tensor=4))
    assert divided.certain == 18 * count_parameters(SIZES) // 4
    assert divided.activations < estimate_memory(SIZES, BF16).activations


def test_a_pipeline_holds_as_many_activations_and_fewer_weights() -> None:
    whole, staged = estimate_memory(SIZES, BF16), estimate_memory(SIZES, replace(BF16, pipeline=4))
    assert staged.certain < whole.certain / 2
    assert staged.activations == whole.activations


def test_sampling_keeps_keys_and_values_and_no_gradients() -> None:
    load = Load(half=True, trains=False, sampled_rows=16, row_tokens=1000)
    memory = estimate_memory(SIZES, load)
    assert memory.cache == 16 * 1000 * 32 * 2 * 8 * 128 * 2
    assert memory.certain == memory.weights == 2 * count_parameters(SIZES)
    assert str(memory) == "18.2 GB (weights 16.1, key-value cache 2.1)"
