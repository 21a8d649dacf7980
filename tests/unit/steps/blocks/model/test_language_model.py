"""Sizes, first weights, and what a model refuses."""

import pytest
import torch
from pydantic import ValidationError

from nemotron_style.runtime.errors import InputError
from nemotron_style.steps.blocks.checkpoint.model_checkpoint import (
    full_shapes,
    full_weights,
    weights_digest,
)
from nemotron_style.steps.blocks.model import parallel
from nemotron_style.steps.blocks.model.language_model import build_model, unwrap
from nemotron_style.steps.blocks.model.logprob import response_logprobs
from nemotron_style.steps.blocks.model.parallel import Parallel
from nemotron_style.steps.blocks.model.prefix_packing import Group, pack
from nemotron_style.steps.blocks.model.rotary import rotary_tables, rotate
from nemotron_style.steps.blocks.settings.model_config import ModelConfig, find_indivisible
from nemotron_style.steps.blocks.settings.optimizer_config import OptimConfig

SIZES = {
    "num_layers": 2,
    "hidden_size": 32,
    "ffn_hidden_size": 48,
    "num_attention_heads": 4,
    "num_query_groups": 2,
    "vocab_size": 50,
    "max_sequence_length": 64,
}
CONFIG = ModelConfig(**SIZES)


@pytest.fixture(autouse=True, scope="module")
def _job():
    parallel.initialize()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"hidden_size": 30}, "hidden_size 30"),
        ({"num_query_groups": 3}, "num_query_groups 3"),
        ({"hidden_size": 12}, "even head size"),
        ({"num_layer": 2}, "num_layer"),
        ({"num_layers": "2"}, "num_layers"),
        ({"architecture": "gpt2"}, "architecture"),
    ],
)
def test_sizes_that_make_no_model_are_refused(change, said):
    with pytest.raises(ValidationError, match=said):
        ModelConfig(**(SIZES | change))


def test_optimizer_settings_take_lists_from_yaml_and_refuse_nonsense():
    assert OptimConfig(betas=[0.9, 0.95]).betas == (0.9, 0.95)
    with pytest.raises(ValidationError, match="min_lr"):
        OptimConfig(lr=1e-4, sched={"min_lr": 1e-3})
    with pytest.raises(ValidationError, match="betas"):
        OptimConfig(betas=[0.9, 1.0])


def test_first_weights_follow_the_seed():
    one, same, other = (weights_digest(build_model(CONFIG, seed=seed)) for seed in (1, 1, 2))
    assert one == same
    assert one != other


def test_first_weights_have_the_intended_spread():
    weights = dict(full_weights(build_model(CONFIG)))
    assert weights["output_layer.weight"].std() == pytest.approx(0.02, rel=0.1)
    assert weights["decoder.layers.0.mlp.linear_fc2.weight"].std() == pytest.approx(0.01, rel=0.1)
    assert (weights["decoder.final_layernorm.weight"] == 1).all()
    # layers differ, and gate differs from up
    first, second = (weights[f"decoder.layers.{n}.mlp.linear_fc1.weight"] for n in (0, 1))
    assert not torch.equal(first, second)
    assert not torch.equal(*first.chunk(2))


def test_first_weights_spread_as_they_are_told():
    usual, wide = (full_weights(build_model(CONFIG, ddp=False, initial=std)) for std in (0.02, 0.1))
    for (name, one), (_, other) in zip(usual, wide, strict=True):
        factor = 1 if one.dim() == 1 else 5
        assert torch.allclose(other, one * factor, rtol=1e-5), name


@pytest.mark.parametrize("tied", [False, True])
def test_the_table_of_shapes_is_that_of_the_model(tied):
    config = CONFIG.model_copy(update={"tie_embeddings": tied})
    model = build_model(config)
    found = {name: tuple(whole.shape) for name, whole in full_weights(model)}
    assert found == full_shapes(config)


def test_tied_embeddings_are_one_parameter_that_learns_from_both_ends():
    model = build_model(CONFIG.model_copy(update={"tie_embeddings": True}))
    names = [name for name, _ in unwrap(model).named_parameters()]
    assert "output_layer.weight" not in names
    response_logprobs(model, pack([Group([1, 2], [[3, 4]])])).sum().backward()
    gradient = unwrap(model).embedding.word_embeddings.weight.main_grad
    assert gradient[1].norm() > 0  # seen
    assert gradient[40].norm() > 0  # never seen, only predicted against


def test_rotation_keeps_length_and_depends_on_distance_only():
    cos, sin = rotary_tables(torch.arange(20), CONFIG)
    states = torch.randn(8).expand(20, 1, 1, 1, 8)
    turned = rotate(states, cos, sin)[:, 0, 0, 0]
    torch.testing.assert_close(turned.norm(dim=1), states[:, 0, 0, 0].norm(dim=1))
    products = turned @ turned.t()
    torch.testing.assert_close(products.diagonal(3), products[0, 3].expand(17), atol=1e-5, rtol=0)


def test_a_division_that_does_not_fit_names_every_size():
    problems = find_indivisible(CONFIG, tensor=4, pipeline=3)
    assert {problem.key for problem in problems} == {"vocab_size", "num_query_groups", "num_layers"}
    told = {problem.key: str(problem) for problem in problems}
    rows = -(-CONFIG.vocab_size // 4) * 4
    assert f"{rows} rows of embeddings would do: make_vocab_size_div" in told["vocab_size"]
    assert "divide them over 1 or 2 tensor ranks" in told["num_query_groups"]
    assert "divide them over 1 or 2 pipeline stages" in told["num_layers"]


def test_processes_that_cannot_be_divided_are_refused():
    with pytest.raises(InputError, match="2 x 1 with 1 process"):
        parallel.initialize(Parallel(tensor=2))
