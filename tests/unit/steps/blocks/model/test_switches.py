"""The switches in which families differ: first weights, both layouts of a row, gradients."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from family_switches import SIZES, SWITCHES, make_model
from nemotron_style.steps.blocks.checkpoint.model_checkpoint import full_shapes, full_weights
from nemotron_style.steps.blocks.model import parallel
from nemotron_style.steps.blocks.model.language_model import build_model, unwrap
from nemotron_style.steps.blocks.model.logprob import response_logprobs
from nemotron_style.steps.blocks.model.prefix_packing import Group, pack
from nemotron_style.steps.blocks.model.rotary import rotary_tables
from nemotron_style.steps.blocks.settings.model_config import ModelConfig

# prompts of one length, so that there is no padding to hide, and of two
SAME = [Group([1, 2, 3, 4, 5, 6, 7], [[8, 9, 3], [4, 4, 4, 5, 6], [5]])]
TWO = [*SAME, Group([9, 8, 7], [[3, 3], [1], [2, 3, 4, 5]])]


@pytest.fixture(autouse=True, scope="module")
def _job() -> None:
    torch.set_num_threads(1)
    parallel.initialize()


def by_rows(model: nn.Module, groups: list[Group]) -> list[Tensor]:
    """The log-probs of each response in a row of its own, without padding."""
    rows = [Group(one.prompt_ids, [ids]) for one in groups for ids in one.responses_ids]
    return [response_logprobs(model, pack([row]))[0, 0] for row in rows]


@pytest.mark.parametrize("groups", [SAME, TWO], ids=["one length", "two lengths"])
@pytest.mark.parametrize("name", SWITCHES)
def test_a_shared_prompt_gives_what_plain_rows_give(name: str, groups: list[Group]) -> None:
    model = make_model(SWITCHES[name])
    packed = pack(groups)
    shared = response_logprobs(model, packed)[packed.mask_BNR]
    torch.testing.assert_close(shared, torch.cat(by_rows(model, groups)), atol=5e-6, rtol=0)


@pytest.mark.parametrize("name", SWITCHES)
def test_gradients_flow_to_every_tensor_and_are_those_of_plain_rows(name: str) -> None:
    model = make_model(SWITCHES[name])
    config = unwrap(model).config.model
    assert {key: tuple(whole.shape) for key, whole in full_weights(model)} == full_shapes(config)
    packed = pack(TWO)
    response_logprobs(model, packed)[packed.mask_BNR].sum().backward()
    shared = {key: weight.main_grad.clone() for key, weight in model.named_parameters()}
    for weight in model.parameters():
        weight.main_grad.zero_()
    torch.cat(by_rows(model, TWO)).sum().backward()
    for key, weight in model.named_parameters():
        assert shared[key].norm() > 0, key
        gap = (shared[key] - weight.main_grad).norm() / shared[key].norm()
        assert gap < 1e-4, key


@pytest.mark.parametrize("name", SWITCHES)
def test_half_precision_stays_near(name: str) -> None:
    packed = pack(TWO)
    wide = response_logprobs(make_model(SWITCHES[name]), packed)
    half = response_logprobs(make_model(SWITCHES[name], torch.bfloat16), packed)
    assert half.dtype is torch.float32
    assert (wide - half).abs().mean() < 0.1


def test_a_window_hides_what_is_too_far() -> None:
    """Of two layers with a window of 3, the last token sees four tokens before it."""
    model = make_model({"sliding_window": 3})
    ids = [1, 2, 3, 4, 5, 6, 7, 8, 9]

    def last(changed: int) -> Tensor:
        row = [11 if place == changed else token for place, token in enumerate(ids)]
        return response_logprobs(model, pack([Group(row, [[5]])]))[0, 0]

    before = last(-1)
    assert torch.equal(last(3), before)
    assert not torch.equal(last(4), before)


@pytest.mark.parametrize(("centred", "gain"), [(False, 1.0), (True, 0.0)])
def test_first_norms_multiply_by_one_and_first_biases_are_zeros(centred: bool, gain: float) -> None:
    switches = {"normalization": "layernorm", "zero_centered_gamma": centred, "qkv_bias": True}
    model = build_model(ModelConfig.model_validate({**SIZES, **switches}))
    vectors = {name: whole for name, whole in full_weights(model) if whole.dim() == 1}
    assert len(vectors) == 2 * 2 * SIZES["num_layers"] + SIZES["num_layers"] + 2
    for name, whole in vectors.items():
        assert torch.equal(whole, torch.full_like(whole, 0.0 if name.endswith("bias") else gain))


def test_a_part_of_a_head_is_not_turned() -> None:
    config = ModelConfig.model_validate({**SIZES, "rotary_percent": 0.5})
    cos, _ = rotary_tables(torch.arange(5), config)
    assert cos.shape[-1] == config.rotary_size == config.head_size // 2
