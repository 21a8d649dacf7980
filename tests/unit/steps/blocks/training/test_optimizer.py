"""AdamW against torch's own on a plain module."""

import pytest
import torch
from megatron.core import parallel_state

from nemotron_style.steps.blocks.model import parallel
from nemotron_style.steps.blocks.model.language_model import build_model, wrap
from nemotron_style.steps.blocks.model.prefix_packing import Group, pack
from nemotron_style.steps.blocks.settings.optimizer_config import OptimConfig
from nemotron_style.steps.blocks.training.microbatch import accumulate_gradients
from nemotron_style.steps.blocks.training.optimizer import (
    CpuAdamW,
    CudaAdam,
    build_optimizer,
    gradient_norm,
)
from small_model import ONE_LAYER
from spread_job import OnCpu


@pytest.fixture(autouse=True, scope="module")
def _job():
    parallel.initialize()


def gradients(model):
    packed = pack([Group([1, 2, 3], [[4, 5], [6]])])
    accumulate_gradients(model, [(packed, None)], lambda logprobs, _: (-logprobs.sum(), None))


def test_updates_are_those_of_torch_with_decay_on_matrices_only():
    config = OptimConfig(lr=1e-2, weight_decay=0.1, betas=(0.8, 0.9), eps=1e-6)
    model = build_model(ONE_LAYER)
    copies = [torch.nn.Parameter(p.detach().clone()) for p in model.parameters()]
    adam = torch.optim.AdamW(
        [
            {"params": [p for p in copies if p.dim() > 1], "weight_decay": 0.1},
            {"params": [p for p in copies if p.dim() == 1], "weight_decay": 0.0},
        ],
        betas=(0.8, 0.9),
        eps=1e-6,
    )
    optimizer = build_optimizer(model, config, gradient_clip=0.5)
    for rate in (1e-2, 5e-3):
        gradients(model)
        for copy, parameter in zip(copies, model.parameters(), strict=True):
            copy.grad = parameter.main_grad.clone()
        expected = torch.nn.utils.clip_grad_norm_(copies, 0.5)
        for group in adam.param_groups:
            group["lr"] = rate
        adam.step()
        assert optimizer.step(rate, step=1, loss=1.0) == pytest.approx(expected.item(), rel=1e-6)
        for copy, parameter in zip(copies, model.parameters(), strict=True):
            torch.testing.assert_close(parameter, copy, rtol=1e-5, atol=1e-7)


def test_no_clip_leaves_gradients_alone():
    model = build_model(ONE_LAYER)
    gradients(model)
    before = [p.main_grad.clone() for p in model.parameters()]
    norm = build_optimizer(model, OptimConfig(), gradient_clip=None).step(1e-3, step=1, loss=1.0)
    assert norm == pytest.approx(torch.cat([g.flatten() for g in before]).norm().item(), rel=1e-6)
    for kept, parameter in zip(before, model.parameters(), strict=True):
        assert torch.equal(kept, parameter.main_grad)


def test_frozen_weights_stay():
    model = build_model(ONE_LAYER, ddp=False)
    model.embedding.requires_grad_(False)
    model = wrap(model)
    frozen = model.module.embedding.word_embeddings.weight.clone()
    gradients(model)
    build_optimizer(model, OptimConfig(lr=1e-1)).step(1e-1, step=1, loss=1.0)
    assert torch.equal(frozen, model.module.embedding.word_embeddings.weight)


def test_the_norm_of_no_parameter_is_zero():
    assert gradient_norm([]) == 0.0


def decayed(optimizer, model):
    """The names of the weights that the optimizer decays, and by how much."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {
        names[id(parameter)]: group["weight_decay"]
        for group in optimizer._adam.param_groups
        for parameter in group["params"]
    }


def test_both_optimizers_decay_and_update_the_same_weights(monkeypatch: pytest.MonkeyPatch):
    for name in ("get_data_parallel_group_gloo", "get_expert_data_parallel_group_gloo"):
        monkeypatch.setattr(parallel_state, name, lambda *_, **__: None)
    config = OptimConfig(lr=1e-2, weight_decay=0.5)
    on_cpu, on_cuda = build_model(ONE_LAYER), build_model(ONE_LAYER)
    with OnCpu():
        # megatron-core clips tensors of CUDA devices alone
        pairs = [
            (CpuAdamW(on_cpu, config, gradient_clip=0.0), on_cpu),
            (CudaAdam(on_cuda, config, gradient_clip=0.0), on_cuda),
        ]
        for rate in (1e-2, 5e-3):
            norms = []
            for optimizer, model in pairs:
                gradients(model)
                norms.append(optimizer.step(rate, step=1, loss=1.0))
            assert norms[0] == pytest.approx(norms[1], rel=1e-6)
    ours, theirs = (decayed(optimizer, model) for optimizer, model in pairs)
    assert ours == theirs
    assert {name for name, decay in ours.items() if not decay} == {
        name for name, parameter in on_cpu.named_parameters() if parameter.dim() == 1
    }
    assert any("layernorm" in name or "layer_norm" in name for name in ours if not ours[name])
    for one, other in zip(on_cpu.parameters(), on_cuda.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-7)
