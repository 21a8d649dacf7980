"""Samples of a packed row are what they are in rows of their own, in every family."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from family_switches import SWITCHES, make_model
from nemotron_style.steps.blocks.model import attention, packed_attention, parallel
from nemotron_style.steps.blocks.model.logprob import response_logprobs
from nemotron_style.steps.blocks.model.packed_attention import attend_at_once, has_kernel
from nemotron_style.steps.blocks.model.prefix_packing import (
    PackedBatch,
    Row,
    pack_rows,
    pack_sequence,
)


@pytest.fixture(autouse=True, scope="module")
def _job() -> None:
    torch.set_num_threads(1)
    parallel.initialize()


def ragged(*lengths: int) -> list[Row]:
    draw = random.Random(1)
    return [
        Row(
            [draw.randrange(50) for _ in range(length)],
            [place > 0 and draw.random() < 0.7 for place in range(length)],
        )
        for length in lengths
    ]


# two of one length side by side, and lengths around every window
ROWS = ragged(17, 9, 9, 5, 4, 2)


def loss_and_gradient(model: nn.Module, packed: PackedBatch) -> tuple[Tensor, Tensor]:
    for weight in model.parameters():
        weight.main_grad.zero_()
    logprobs = response_logprobs(model, packed)
    (-logprobs.sum() / packed.label_tokens).backward()
    whole = torch.cat([weight.main_grad.flatten() for weight in model.parameters()])
    return logprobs.detach(), whole.clone()


@pytest.mark.parametrize("name", SWITCHES)
def test_a_packed_row_gives_what_padded_rows_give(name: str) -> None:
    model = make_model(SWITCHES[name])
    padded, expected = loss_and_gradient(model, pack_rows(ROWS))
    packed, found = loss_and_gradient(model, pack_sequence(ROWS))
    assert (padded.sum() - packed.sum()).abs() / padded.sum().abs() < 1e-6
    torch.testing.assert_close(packed, padded, atol=5e-6, rtol=1e-6)
    assert (found - expected).norm() / expected.norm() < 1e-6


def test_nothing_is_seen_of_other_samples() -> None:
    model = make_model({})
    before = response_logprobs(model, pack_sequence(ROWS))
    other = [Row([7] * len(row.ids), row.counts) for row in ROWS]
    after = response_logprobs(model, pack_sequence([*other[:1], *ROWS[1:5], *other[5:]]))
    assert torch.equal(before[1:5], after[1:5])
    assert not torch.equal(before[0], after[0])


def by_definition(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    starts: Tensor,
    _starts: Tensor,
    longest: int,
    _longest: int,
    *,
    scale: float | None,
    window_size: tuple[int, int],
    enable_gqa: bool = False,
) -> Tensor:
    """What torch's kernel computes, by its documentation."""
    mixed = []
    for begin, end in zip(starts[:-1].tolist(), starts[1:].tolist(), strict=True):
        assert end - begin <= longest
        states = [each[begin:end].transpose(0, 1) for each in (query, key, value)]
        mask = torch.ones(end - begin, end - begin, dtype=torch.bool).tril()
        if window_size[0] >= 0:
            mask = mask.triu(-window_size[0])
        options: dict[str, Any] = {"scale": scale, "enable_gqa": enable_gqa}
        out = F.scaled_dot_product_attention(*states, attn_mask=mask, **options)
        mixed.append(out.transpose(0, 1))
    return torch.cat(mixed)


@pytest.mark.parametrize("name", [name for name in SWITCHES if "capped" not in name])
@pytest.mark.parametrize("options", [{"enable_gqa"}, set()], ids=["groups", "heads"])
def test_the_kernel_that_takes_all_samples_at_once_is_told_the_same(
    monkeypatch: pytest.MonkeyPatch, name: str, options: set[str]
) -> None:
    model = make_model(SWITCHES[name])
    expected = response_logprobs(model, pack_sequence(ROWS))
    monkeypatch.setattr(attention, "has_kernel", lambda _query: True)
    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", by_definition)
    monkeypatch.setattr(packed_attention, "kernel_options", lambda: options)
    found = response_logprobs(model, pack_sequence(ROWS))
    torch.testing.assert_close(found, expected, atol=5e-6, rtol=0)


@pytest.mark.skipif(
    not packed_attention.kernel_options(), reason="torch 2.10 is the first to have it"
)
def test_the_kernel_takes_tensors_of_a_cuda_device() -> None:
    """FakeTensor: shapes, types and devices of the real operator, no numbers."""
    with FakeTensorMode(), torch.no_grad():
        starts = torch.tensor([0, 7, 10], dtype=torch.int32, device="cuda")
        query = torch.empty(10, 4, 16, dtype=torch.bfloat16, device="cuda")
        key = torch.empty(10, 2, 16, dtype=torch.bfloat16, device="cuda")
        assert has_kernel(query)
        assert not has_kernel(query.float())
        assert not has_kernel(query.cpu())
        for window in (None, 3):
            mixed = attend_at_once(
                *(query, key, key), starts=starts, longest=7, scale=None, window=window
            )
            assert mixed.shape == query.shape
            assert mixed.device.type == "cuda"
