"""The gradient of the norm, which is written by hand on the CPU."""

import pytest
import torch
import torch.nn.functional as F

from nemotron_style.steps.blocks.model.norm import RMSNorm


def norm_of(x, weight, eps=1e-5):
    module = RMSNorm(weight.numel(), eps=eps)
    return torch.func.functional_call(module, {"weight": weight}, (x,))


def test_its_gradient_is_that_of_its_differences():
    x = torch.randn(3, 2, 5, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(norm_of, (x, weight))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_gives_what_torch_gives(dtype):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(7, 3, 64, generator=generator).to(dtype).requires_grad_()
    weight = torch.randn(64, generator=generator).to(dtype).requires_grad_()
    upstream = torch.randn(7, 3, 64, generator=generator).to(dtype)
    ours, torchs = norm_of(x, weight), F.rms_norm(x, (64,), weight, 1e-5)
    assert torch.equal(ours, torchs)
    pairs = zip(
        torch.autograd.grad(ours, (x, weight), upstream),
        torch.autograd.grad(torchs, (x, weight), upstream),
        strict=True,
    )
    for our_gradient, torchs_gradient in pairs:
        torch.testing.assert_close(our_gradient, torchs_gradient, rtol=1e-5, atol=2e-6)


def test_a_frozen_weight_gets_no_gradient():
    x, weight = torch.randn(4, 8, requires_grad=True), torch.ones(8)
    norm_of(x, weight).sum().backward()
    assert x.grad is not None
    assert weight.grad is None
