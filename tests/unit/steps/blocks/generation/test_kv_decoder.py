"""Token by token over a cache gives the logits that the model's own forward gives at once."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from nemotron_style.steps.blocks.checkpoint.logit_parity import model_logits
from nemotron_style.steps.blocks.generation import kv_decoder, packed_linear
from nemotron_style.steps.blocks.generation.kv_decoder import Decoder
from nemotron_style.steps.blocks.model.language_model import build_model
from nemotron_style.steps.blocks.model.parallel import initialize
from nemotron_style.steps.blocks.settings.model_config import ModelConfig

CONFIG = ModelConfig(
    num_layers=3,
    hidden_size=48,
    ffn_hidden_size=96,
    num_attention_heads=6,
    num_query_groups=2,
    vocab_size=96,
    max_sequence_length=32,
)


@pytest.fixture(scope="module")
def model() -> torch.nn.Module:
    initialize(seed=1)
    model = build_model(CONFIG, ddp=False)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(5.0 if parameter.dim() > 1 else 1.0)
    return model


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("lengths", [[5, 5, 5], [7, 3, 12], [1, 1, 2]])
@torch.inference_mode()
def test_logits_are_those_of_the_model(
    model: torch.nn.Module,
    monkeypatch: pytest.MonkeyPatch,
    lengths: list[int],
    packed: bool,
) -> None:
    """Rows of one length and of several, and a row that moves to another slot half-way."""
    monkeypatch.setattr(packed_linear, "PACKED_FROM", 0 if packed else 10**9)
    decoder = Decoder(model, CONFIG)
    decoder.read_weights(rows=3)
    rows = torch.randint(CONFIG.vocab_size, (3, 20), generator=torch.Generator().manual_seed(1))
    wanted = model_logits(model, rows)
    cache = decoder.cache(prompts=4, slots=4, prompt_width=12, width=8)
    for slot, length in enumerate(lengths):
        prefix = decoder.prefill(rows[slot : slot + 1, :length])
        cache.start(prefix, slot, 1)
        torch.testing.assert_close(prefix.logits_PV[0], wanted[slot, length - 1], **CLOSE)
    order = [0, 1, 2]
    for step in range(8):
        at = [lengths[row] + step for row in order]
        tokens = [int(rows[row, place]) for row, place in zip(order, at, strict=True)]
        logits = decoder.advance(tokens, cache)
        torch.testing.assert_close(logits, wanted[order, at], **CLOSE)
        if step == 3:  # the first row leaves; the last one takes its slot
            cache.end(0)
            order = [2, 1]


CLOSE = {"atol": 2e-5, "rtol": 1e-5}

YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 8}
LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 16}
SWITCHED: dict[str, dict[str, Any]] = {
    "biases": {"qkv_bias": True},
    "wide heads and a norm of each": {"kv_channels": 16, "qk_norm": "head"},
    "norms of all heads, on outputs": {"qk_norm": "full", "norm_placement": "post"},
    "LayerNorm, squared ReLU, partial rotary": {
        **{"normalization": "layernorm", "zero_centered_gamma": True},
        **{"activation": "squared_relu", "rotary_percent": 0.5},
    },
    "Gemma": {
        **{"zero_centered_gamma": True, "norm_placement": "both", "activation": "geglu"},
        **{"embedding_multiplier": 48**0.5, "query_scale": 0.3, "tie_embeddings": True},
        **{"attention_softcap": 1.5, "logit_softcap": 5.0},
        **{"sliding_window": 4, "full_attention_every": 2},
    },
    "two rotary bases": {
        **{"sliding_window": 5, "full_attention_every": 3, "local_rope_theta": 100.0},
        **{"rope_scaling": {"rope_type": "linear", "factor": 8.0}, "qk_norm": "head"},
        "zero_centered_gamma": True,
    },
    "a window in every layer": {"sliding_window": 3},
    "llama3": {"rope_scaling": {"rope_type": "llama3", "factor": 4.0, **LLAMA3}},
    "yarn": {"rope_scaling": YARN},
}


@pytest.mark.parametrize("name", SWITCHED)
@torch.inference_mode()
def test_switches_compute_what_the_model_computes(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(kv_decoder, "QUERY_BLOCK", 3)
    initialize(seed=1)
    config = ModelConfig.model_validate(CONFIG.model_dump() | SWITCHED[name])
    model = build_model(config, ddp=False)
    draw = torch.Generator().manual_seed(2)
    for parameter in model.parameters():  # biases are zeros, and norms all alike
        noise = torch.randn(parameter.shape, generator=draw)
        parameter.copy_(parameter * 5 if parameter.dim() > 1 else parameter + noise / 3)
    decoder = Decoder(model, config)
    decoder.read_weights(rows=3, width=20)
    rows = torch.randint(config.vocab_size, (3, 20), generator=draw)
    wanted = model_logits(model, rows)
    assert wanted.std() > 0.3
    # a grid of prompts and responses without gaps, and one with gaps and other lengths
    for lengths, responses in (([9, 9, 9], [2, 2, 2]), ([9, 3, 12], [1, 3, 2])):
        cache = decoder.cache(prompts=3, slots=6, prompt_width=12, width=7)
        for prompt, length in enumerate(lengths):
            prefix = decoder.prefill(rows[prompt : prompt + 1, :length])
            cache.start(prefix, prompt, responses[prompt])
            torch.testing.assert_close(prefix.logits_PV[0], wanted[prompt, length - 1], **LOOSE)
        of = [prompt for prompt in range(3) for _ in range(responses[prompt])]
        for step in range(7):
            at = [lengths[prompt] + step for prompt in of]
            tokens = [int(rows[pair]) for pair in zip(of, at, strict=True)]
            logits = decoder.advance(tokens, cache)
            torch.testing.assert_close(logits, wanted[of, at], **LOOSE)


LOOSE = {"atol": 1e-4, "rtol": 1e-5}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(1,), (5,), (2, 7)])
@torch.inference_mode()
def test_packed_products_are_plain_products(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    draw = torch.Generator().manual_seed(1)
    plain = torch.randn(300, 256, generator=draw).to(dtype)
    states = torch.randn(*shape, 256, generator=draw).to(dtype)
    weight = packed_linear.pack_linear(plain, rows=32)
    wanted = states.double() @ plain.double().T
    slack = 1e-4 if dtype is torch.float32 else 0.3
    torch.testing.assert_close(weight(states).double(), wanted, atol=slack, rtol=0)
    assert weight(states).dtype is dtype


def test_small_weights_stay_as_they_are() -> None:
    assert packed_linear.pack_linear(torch.randn(8, 8), rows=32).packed is None
