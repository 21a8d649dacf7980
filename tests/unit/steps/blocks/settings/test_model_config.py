"""A model's sizes and switches: what is written, what is refused."""

from __future__ import annotations

from typing import Any

import pytest

from nemotron_style.steps.blocks.settings.model_config import ModelConfig

SIZES: dict[str, Any] = {
    "num_layers": 4,
    "hidden_size": 32,
    "ffn_hidden_size": 64,
    "num_attention_heads": 4,
    "num_query_groups": 2,
    "vocab_size": 64,
    "max_sequence_length": 64,
}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}


def test_a_plain_llama_is_written_as_it_was_before_there_were_switches() -> None:
    assert ModelConfig(**SIZES).model_dump() == {
        "architecture": "llama",
        **SIZES,
        "rope_theta": 10000.0,
        "norm_epsilon": 1e-5,
        "tie_embeddings": False,
    }


def test_switches_that_are_set_are_written_and_read_back() -> None:
    config = ModelConfig.model_validate(
        {**SIZES, "architecture": "qwen3", "kv_channels": 16, "rope_scaling": LLAMA3}
    )
    written = config.model_dump_json()
    assert ModelConfig.model_validate_json(written) == config
    assert config.model_dump()["rope_scaling"] == LLAMA3
    assert "qkv_bias" not in written


def test_every_kth_layer_counted_from_one_sees_the_whole_row() -> None:
    config = ModelConfig(**SIZES, sliding_window=8, full_attention_every=2)
    assert [config.window_of(number) for number in (1, 2, 3, 4)] == [8, None, 8, None]
    config = ModelConfig(**SIZES, sliding_window=8)
    assert [config.window_of(number) for number in (1, 2)] == [8, 8]


@pytest.mark.parametrize(
    ("switches", "message"),
    [
        ({"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, "rope_scaling.rope_type"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 2.0}}, "needs original_max"),
        ({"rope_scaling": {**LLAMA3, "beta_fast": 2.0}}, "llama3 has no beta_fast"),
        ({"rope_scaling": {**LLAMA3, "high_freq_factor": 1.0}}, "is not above low_freq_factor 1.0"),
        ({"full_attention_every": 2}, "need a sliding_window"),
        ({"local_rope_theta": 1e4}, "need a sliding_window"),
        ({"rotary_percent": 0.4}, "even rotated part of a head, got 3"),
        ({"architecture": "mamba"}, "architecture"),
    ],
)
def test_switches_that_mean_nothing_are_refused(switches: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ModelConfig.model_validate({**SIZES, **switches})
