"""Low-rank adapters of one process: what they compute, what is trained, and what they take."""

import pytest
import torch

from gradient import full_gradient
from nemotron_style.steps.blocks.checkpoint.model_checkpoint import full_weights, weights_digest
from nemotron_style.steps.blocks.model import parallel
from nemotron_style.steps.blocks.model.language_model import build_model, wrap
from nemotron_style.steps.blocks.model.logprob import response_logprobs
from nemotron_style.steps.blocks.model.lora import (
    adapted_layers,
    adapters_off,
    apply_lora,
    load_adapters,
    lora_delta,
)
from nemotron_style.steps.blocks.model.prefix_packing import Group, pack
from nemotron_style.steps.blocks.settings.model_config import ModelConfig
from nemotron_style.steps.blocks.settings.optimizer_config import OptimConfig
from nemotron_style.steps.blocks.settings.peft_config import LoraTuning
from nemotron_style.steps.blocks.training.microbatch import score
from nemotron_style.steps.blocks.training.optimizer import build_optimizer

CONFIG = ModelConfig(
    num_layers=2,
    hidden_size=32,
    ffn_hidden_size=48,
    num_attention_heads=4,
    num_query_groups=2,
    vocab_size=64,
    max_sequence_length=64,
    qkv_bias=True,
)
LORA = LoraTuning(target_modules=["all"], adapter_dim=4, alpha=8)
BATCH = pack([Group([1, 2, 3, 4], [[5, 6, 7], [8, 9]]), Group([4, 5], [[9], [7, 2, 1]])])


@pytest.fixture(autouse=True, scope="module")
def _job():
    parallel.initialize()


def adapted(lora=LORA, *, config=CONFIG, dtype=torch.float32, random=True):
    """A model with adapters; with ``random`` ones B is not zero."""
    model = build_model(config, dtype=dtype, ddp=False)
    settings = lora.model_copy(update={"row_init_method": "normal"}) if random else lora
    apply_lora(model, settings, seed=3)
    return model


def test_a_new_adapter_changes_nothing_and_an_old_one_can_be_left_out():
    base = build_model(CONFIG, ddp=False)
    expected = response_logprobs(base, BATCH)
    torch.testing.assert_close(response_logprobs(adapted(random=False), BATCH), expected)
    model = adapted()
    assert (response_logprobs(model, BATCH) - expected).abs().max() > 0.1
    with adapters_off(model):
        assert torch.equal(response_logprobs(model, BATCH), expected)
    assert weights_digest(model) == weights_digest(base)


def test_folded_into_the_weights_it_computes_the_same():
    model = adapted()
    expected = response_logprobs(model, BATCH)
    layers = list(adapted_layers(model))
    assert len(layers) == 4 * CONFIG.num_layers
    with torch.no_grad():
        for _, layer in layers:
            layer.weight += lora_delta(layer)
    with adapters_off(model):
        torch.testing.assert_close(response_logprobs(model, BATCH), expected)


def test_only_adapters_have_gradients_moments_and_buffers():
    model = wrap(adapted(random=False))
    own = sum(whole.numel() for _, whole in full_weights(model, adapters=True))
    trained = [name for name, p in model.module.named_parameters() if p.requires_grad]
    assert all("lora_" in name for name in trained)
    assert len(trained) == 2 * 4 * CONFIG.num_layers
    optimizer = build_optimizer(model, OptimConfig())
    response_logprobs(model, BATCH).sum().backward()
    before = weights_digest(model)
    optimizer.step(1e-2, step=1, loss=1.0)
    assert weights_digest(model) == before  # of the base
    buffers = sum(buffer.grad_data.nbytes for buffer in model.buffers)
    padding = 64 * len(trained) * 4  # a parameter begins at a multiple of 64 numbers
    assert own * 4 <= buffers <= own * 4 + padding
    assert all(p.grad is None for p in model.parameters())
    moments = optimizer._adam.state.values()
    held = sum(state[name].nbytes for state in moments for name in ("exp_avg", "exp_avg_sq"))
    assert held == 2 * own * 4


def test_the_backward_pass_keeps_no_input_of_a_frozen_weight():
    """The input of a product is kept for the gradient of its weight, and here for A's alone."""

    def kept_bytes(model):
        sizes = {}

        def pack_hook(tensor):
            sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
        with torch.autograd.graph.saved_tensors_hooks(pack_hook, lambda tensor: tensor):
            response_logprobs(model, BATCH).sum()
        return sum(size for at, size in sizes.items() if at not in weights)

    whole = kept_bytes(build_model(CONFIG, ddp=False))
    lora = LORA.model_copy(update={"target_modules": ["attention_qkv"], "adapter_dim": 1})
    assert kept_bytes(adapted(lora)) < 0.9 * whole


def test_first_weights_follow_seed_and_name():
    one, same = (dict(full_weights(adapted(), adapters=True)) for _ in range(2))
    assert all(torch.equal(one[name], same[name]) for name in one)
    prefix = "decoder.layers.0.mlp.linear_fc1."
    assert one[prefix + "lora_A"].shape == (4, 32)
    assert one[prefix + "lora_B"].shape == (96, 4)
    assert one[prefix + "lora_A"].std() == pytest.approx((2 / 36) ** 0.5, rel=0.2)  # Glorot's
    assert not torch.equal(one[prefix + "lora_A"], one[prefix.replace("0", "1") + "lora_A"])
    fresh = dict(full_weights(adapted(random=False), adapters=True))
    assert all(not whole.any() for name, whole in fresh.items() if name.endswith("_B"))


def test_whole_tensors_are_taken_over_by_name():
    given = dict(full_weights(adapted(), adapters=True))
    other = adapted(random=False)
    load_adapters(other, given)
    found = dict(full_weights(other, adapters=True))
    assert all(torch.equal(found[name], given[name]) for name in given)


def test_dropout_is_for_training_alone_and_the_same_from_the_same_state():
    model = adapted(LORA.model_copy(update={"adapter_dropout": 0.5}))
    plain = response_logprobs(adapted(), BATCH)
    torch.manual_seed(5)
    first, second = response_logprobs(model, BATCH), response_logprobs(model, BATCH)
    assert not torch.equal(first, second)
    torch.manual_seed(5)
    assert torch.equal(response_logprobs(model, BATCH), first)
    assert torch.equal(score(model, [BATCH])[0], plain)
    assert not torch.equal(response_logprobs(model, BATCH), plain)


def test_gradients_are_those_of_the_folded_weight():
    """Of ``W + s B A``: ``dB = s dW A^T`` and ``dA = s B^T dW``, bias and tied head or not."""
    for tied in (False, True):
        config = CONFIG.model_copy(update={"tie_embeddings": tied})
        model = wrap(adapted(config=config))
        response_logprobs(model, BATCH).sum().backward()
        found = full_gradient(model)
        folded = build_model(config)
        weights = dict(folded.module.named_parameters())
        with torch.no_grad():
            for name, layer in adapted_layers(model.module):
                weights[f"{name}.weight"] += lora_delta(layer)
        response_logprobs(folded, BATCH).sum().backward()
        for name, layer in adapted_layers(model.module):
            dW = weights[f"{name}.weight"].main_grad
            expected = {"lora_A": 2 * layer.lora_B.T @ dW, "lora_B": 2 * dW @ layer.lora_A.T}
            for factor, gradient in expected.items():
                torch.testing.assert_close(
                    found[f"{name}.{factor}"], gradient, rtol=1e-4, atol=1e-5
                )
