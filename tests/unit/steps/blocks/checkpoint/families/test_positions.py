"""Rotary positions and windows in config.json: every form that is read, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from nemotron_style.runtime.errors import InputError
from nemotron_style.steps.blocks.checkpoint.hf_config import build_settings, parse_sizes
from nemotron_style.steps.blocks.settings.model_config import ModelConfig

SIZES: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
FULL, SLIDING = "full_attention", "sliding_attention"
NEW_FORM = {
    FULL: {"rope_type": "linear", "factor": 8.0, "rope_theta": 5e5},
    SLIDING: {"rope_type": "default", "rope_theta": 2e4},
}
OLD_FORM = {
    "rope_scaling": {"rope_type": "linear", "factor": 8.0},
    "rope_theta": 5e5,
    "rope_local_base_freq": 2e4,
}
LINEAR = {"rope_type": "linear", "factor": 2.0}


def read(kind: str, **changes: Any) -> ModelConfig:
    return parse_sizes({**SIZES, "model_type": kind, **changes}, Path("folder"))


def windows(config: ModelConfig) -> list[int | None]:
    return [config.window_of(number) for number in range(1, config.num_layers + 1)]


def test_both_forms_of_gemma_3_are_one_model() -> None:
    found = read("gemma3_text", rope_parameters=NEW_FORM)
    assert found == read("gemma3_text", **OLD_FORM)
    assert (found.rope_theta, found.local_rope_theta) == (5e5, 2e4)
    assert found.rope_scaling is not None
    assert found.rope_scaling.factor == 8.0


@pytest.mark.parametrize(
    ("kind", "changes", "expected"),
    [
        ("mistral", {}, [4096] * 4),
        ("mistral", {"sliding_window": None}, [None] * 4),
        ("qwen2", {"sliding_window": 9}, [None] * 4),
        ("qwen2", {"sliding_window": 9, "max_window_layers": 3}, [None] * 4),
        ("qwen2", {"sliding_window": 9, "use_sliding_window": True}, [None] * 4),
        (
            "qwen2",
            {"sliding_window": 9, "use_sliding_window": True, "max_window_layers": 0},
            [9] * 4,
        ),
        ("gemma2", {"sliding_window": 9}, [9, None, 9, None]),
        ("gemma3_text", {"sliding_window": 9, "sliding_window_pattern": 3}, [9, 9, None, 9]),
        ("gemma3_text", {"sliding_window": 9}, [9] * 4),
        (
            "gemma3_text",
            {"sliding_window": 9, "layer_types": [SLIDING, FULL] * 2},
            [9, None, 9, None],
        ),
        ("qwen3", {"layer_types": [FULL] * 4, "use_sliding_window": True}, [None] * 4),
    ],
)
def test_windows_are_where_the_family_has_them(
    kind: str, changes: dict[str, Any], expected: list[int | None]
) -> None:
    found = read(kind, **changes)
    assert windows(found) == expected
    settings = build_settings(found, dtype="float32", token_ids={})
    assert parse_sizes(json.loads(json.dumps(settings)), Path("folder")) == found


def test_yarn_starts_from_the_longest_row_where_nothing_else_is_said() -> None:
    found = read("qwen2", rope_scaling={"type": "yarn", "factor": 4.0})
    assert found.rope_scaling is not None
    assert found.rope_scaling.original_max_position_embeddings == 64


REFUSALS = [
    ("phi3", {"rope_scaling": {"type": "longrope", "short_factor": [1]}}, "scaled by longrope"),
    ("phi3", {"rope_scaling": {"type": "yarn", "factor": 4.0}}, "scaled by yarn"),
    ("gemma3_text", {"rope_parameters": {"rope_theta": 1.0}}, "scaled in another form"),
    ("gemma3_text", {"rope_parameters": {SLIDING: LINEAR}}, "scaled in layers with a window"),
    ("qwen2", {"rope_scaling": {**LINEAR, "mrope_section": [1]}}, "mrope_section: unknown field"),
    (
        "qwen2",
        {"use_sliding_window": True, "max_window_layers": 2},
        "layer_types: the model cannot be represented: layers with and without a window follow no",
    ),
    ("qwen3", {"attention_bias": True}, "biases in attention"),
    ("gemma2", {"layer_types": [FULL, SLIDING, SLIDING, SLIDING]}, "follow no period"),
    ("gemma2", {"layer_types": [{}]}, "follow no period"),
    ("gemma2", {"hidden_activation": "gelu"}, "another activation"),
    ("gemma2", {"query_pre_attn_scalar": 0}, "the scale of the softmax"),
    ("gemma2", {"hidden_size": 10**400}, "hidden_size"),
    ("gemma3_text", {"use_bidirectional_attention": True}, "attention to later tokens"),
    ("gemma3_text", {"sliding_window_pattern": "six"}, "a number of layers"),
    ("mistral", {"layer_types": [SLIDING] * 4}, "attention over a window in some layers"),
    ("nemotron", {"partial_rotary_factor": "half"}, "partial_rotary_factor"),
    ("nemotron", {"hidden_act": "relu"}, "allowed: relu2"),
    ("gemma3", {"text_config": {}}, "another architecture"),
]


@pytest.mark.parametrize(("kind", "changes", "message"), REFUSALS)
def test_what_is_not_computed_is_refused(kind: str, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as caught:
        read(kind, **changes)
    assert message in str(caught.value)
    assert len(caught.value.problems) == 1
