"""Token by token over a cache gives the logits that the model's own forward gives at once."""

from __future__ import annotations

import pytest
import torch

from nemotron_style.steps.blocks.checkpoint.logit_parity import model_logits
from nemotron_style.steps.blocks.generation import packed_linear
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
    cache = decoder.cache(4, 20)
    for slot, length in enumerate(lengths):
        prefix = decoder.prefill(rows[slot : slot + 1, :length])
        cache.start(prefix, slice(slot, slot + 1))
        torch.testing.assert_close(prefix.logits_PV[0], wanted[slot, length - 1], **CLOSE)
    order = [0, 1, 2]
    for step in range(8):
        at = [lengths[row] + step for row in order]
        tokens = [int(rows[row, place]) for row, place in zip(order, at, strict=True)]
        logits = decoder.advance(tokens, at, cache)
        torch.testing.assert_close(logits, wanted[order, at], **CLOSE)
        if step == 3:  # the first row leaves; the last one takes its slot
            cache.move(2, 0, at[2] + 1)
            order = [2, 1]


CLOSE = {"atol": 2e-5, "rtol": 1e-5}


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
