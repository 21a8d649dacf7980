"""The switches in which families of models differ, each in a small model."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from nemotron_style.steps.blocks.model.language_model import build_model
from nemotron_style.steps.blocks.settings.model_config import ModelConfig

SIZES: dict[str, Any] = {
    "num_layers": 2,
    "hidden_size": 32,
    "ffn_hidden_size": 48,
    "num_attention_heads": 4,
    "num_query_groups": 2,
    "vocab_size": 50,
    "max_sequence_length": 64,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
SWITCHES: dict[str, dict[str, Any]] = {
    "plain": {},
    "window": {"sliding_window": 3},
    "window of one token": {"sliding_window": 1},
    "window beyond every row": {"sliding_window": 40},
    "windows by turns, capped": {
        "activation": "geglu",
        "zero_centered_gamma": True,
        "norm_placement": "both",
        "kv_channels": 16,
        "sliding_window": 4,
        "full_attention_every": 2,
        "attention_softcap": 5.0,
        "logit_softcap": 3.0,
        "query_scale": 0.3,
        "embedding_multiplier": 5.6,
    },
    "window with its own base": {
        "qk_norm": "head",
        "qkv_bias": True,
        "sliding_window": 4,
        "full_attention_every": 2,
        "local_rope_theta": 100.0,
        "rope_scaling": YARN,
    },
    "norms on outputs": {"norm_placement": "post", "qk_norm": "full"},
    "layer norm": {
        "activation": "squared_relu",
        "normalization": "layernorm",
        "zero_centered_gamma": True,
        "rotary_percent": 0.5,
    },
}


def make_model(switches: dict[str, Any], dtype: torch.dtype = torch.float32) -> nn.Module:
    """A model whose norms and biases are far from their start."""
    model = build_model(ModelConfig.model_validate({**SIZES, **switches}), dtype=dtype)
    draw = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn(weight.shape, generator=draw) * 0.3)
    return model
