"""Products by oneDNN are those of torch, and so are their gradients."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from nemotron_style.steps.blocks.model import linear as module
from nemotron_style.steps.blocks.model.linear import LEAST_TOKENS, linear


@pytest.mark.skipif(not module._ONEDNN, reason="this build of torch has no oneDNN")
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("frozen", [True, False])
def test_products_and_gradients_are_those_of_torch(bias: bool, frozen: bool) -> None:
    """Of states that are no plain matrix, with a weight that is trained or only passed through."""
    draw = torch.Generator().manual_seed(1)
    states = torch.randn(3, LEAST_TOKENS, 256, generator=draw).transpose(0, 1).requires_grad_()
    weight = torch.randn(320, 256, generator=draw).requires_grad_(not frozen)
    added = torch.randn(320, generator=draw).requires_grad_() if bias else None
    upstream = torch.randn(LEAST_TOKENS, 3, 320, generator=draw)
    leaves = [one for one in (states, weight, added) if one is not None and one.requires_grad]
    product, wanted = linear(states, weight, added), F.linear(states, weight, added)
    assert "_Linear" in type(product.grad_fn).__name__
    assert (product.grad_fn.saved_tensors[0] is None) == frozen  # the states are not kept
    torch.testing.assert_close(product, wanted, atol=1e-4, rtol=0)
    own, theirs = (torch.autograd.grad(one, leaves, upstream) for one in (product, wanted))
    for one, other in zip(own, theirs, strict=True):
        torch.testing.assert_close(one, other, atol=1e-3, rtol=0)


@pytest.mark.parametrize(
    ("tokens", "features", "dtype"),
    [(8, 512, torch.float32), (512, 8, torch.float32), (512, 512, torch.bfloat16)],
)
def test_small_products_and_other_types_are_torch_s_own(
    tokens: int, features: int, dtype: torch.dtype
) -> None:
    states, weight = torch.randn(tokens, 256).to(dtype), torch.randn(features, 256).to(dtype)
    assert torch.equal(linear(states, weight), F.linear(states, weight))
