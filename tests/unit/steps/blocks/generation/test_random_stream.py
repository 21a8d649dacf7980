"""Draws follow their weights exactly, at the edges too, and belong to a sample alone."""

from __future__ import annotations

import pytest
import torch

from nemotron_style.steps.blocks.generation.random_stream import (
    BLOCK,
    inverse_cdf,
    sample_keys,
    uniforms,
)

LARGEST = 1 - 2.0**-52  # of the numbers that `uniforms` gives


def test_uniforms_are_uniform_and_unrelated() -> None:
    keys = sample_keys(7, 50_000, 1).flatten()
    numbers = torch.stack([uniforms(keys, position) for position in range(3)])
    assert numbers.min() >= 0
    assert numbers.max() <= LARGEST
    assert numbers.mean().item() == pytest.approx(0.5, abs=0.005)
    assert numbers.var().item() == pytest.approx(1 / 12, abs=0.002)
    related = torch.corrcoef(torch.cat([numbers, numbers[:1].roll(1, 1)])) - torch.eye(4)
    assert related.abs().max().item() < 0.02


def test_uniforms_of_many_positions_are_those_of_each() -> None:
    keys = sample_keys(3, 4, 2).flatten()
    together = uniforms(keys[:, None], torch.arange(5))
    assert torch.equal(together, torch.stack([uniforms(keys, at) for at in range(5)], dim=1))


def peaked(vocabulary: int) -> torch.Tensor:
    """Weights like a model's: over many orders of magnitude, in no order."""
    draw = torch.Generator().manual_seed(1)
    return torch.exp(4 * torch.randn(1, vocabulary, generator=draw))


def test_a_large_vocabulary_is_drawn_from_exactly() -> None:
    """Chi-square of 200 000 draws from 128 256 tokens, binned into 500 of like probability."""
    weights = peaked(128_256)
    numbers = uniforms(sample_keys(11, 200_000, 1).flatten(), 0)
    tokens = inverse_cdf(weights, numbers[None])[0][0]
    order = weights[0].argsort(descending=True)
    share = weights[0].double()[order] / weights.double().sum()
    bins = torch.empty_like(order)
    ranks = (share.cumsum(0) - share / 2) * 500  # the last may round to 500
    bins[order] = ranks.long().clamp_(max=499)
    expected = torch.zeros(500, dtype=torch.float64)
    expected.index_add_(0, bins[order], share * len(numbers))
    observed = torch.bincount(bins[tokens], minlength=500)
    used = expected > 0
    statistic = ((observed - expected) ** 2 / expected)[used].sum().item()
    freedom = int(used.sum()) - 1
    assert freedom > 200
    # The mean of chi-square is its freedom, its deviation sqrt(2 freedom): four of them is 1e-4.
    assert abs(statistic - freedom) < 4 * (2 * freedom) ** 0.5


@pytest.mark.parametrize("vocabulary", [1, 63, 64, 65, 1000, 50_257, 128_256])
def test_the_token_is_that_of_one_cumulative_sum(vocabulary: int) -> None:
    """Drawing in two steps gives the token of the plain float64 sum, except within its rounding."""
    weights = peaked(vocabulary)
    numbers = uniforms(sample_keys(2, 5000, 1).flatten(), 0)
    tokens, total = inverse_cdf(weights, numbers[None])
    cumulative = weights[0].double().cumsum(0)
    assert total.item() == pytest.approx(cumulative[-1].item(), rel=1e-12)
    targets = numbers * cumulative[-1]
    slack = 1e-12 * cumulative[-1]
    assert (cumulative[tokens[0]] >= targets - slack).all()
    assert (cumulative[tokens[0]] - weights[0, tokens[0]] <= targets + slack).all()


def test_both_ends_of_the_numbers_reach_tokens_with_weight() -> None:
    weights = torch.zeros(3, 2 * BLOCK + 10)
    weights[0, [5, 100]] = 1.0
    weights[1, BLOCK] = 1e-30
    weights[2, [0, 70, 130]] = torch.tensor([1e-38, 3.0, 1e-38])
    numbers = torch.tensor([0.0, 2.0**-52, 0.5, LARGEST, 1.0], dtype=torch.float64)
    tokens = inverse_cdf(weights, numbers.expand(3, -1).contiguous())[0].tolist()
    assert tokens[0] == [5, 5, 100, 100, 100]
    assert tokens[1] == [BLOCK] * 5
    assert tokens[2][0] == 0
    assert tokens[2][2] == 70
    assert set(tokens[2]) <= {0, 70, 130}


def test_the_largest_number_never_rounds_past_the_last_token() -> None:
    """Sums that are not exact: many tokens, the last of them without weight."""
    draw = torch.Generator().manual_seed(3)
    for size in (100, 1000, 30_000):
        weights = torch.rand(20, size, generator=draw)
        weights[:, -7:] = 0
        numbers = torch.tensor([LARGEST, 1.0], dtype=torch.float64).expand(20, -1).contiguous()
        assert (inverse_cdf(weights, numbers)[0] == size - 8).all()


def test_no_token_without_weight_is_drawn() -> None:
    draw = torch.Generator().manual_seed(4)
    weights = torch.rand(4, 700, generator=draw)
    weights[torch.rand(4, 700, generator=draw) < 0.9] = 0
    numbers = uniforms(sample_keys(5, 4, 4000), 0)
    tokens = inverse_cdf(weights, numbers)[0]
    assert (weights.gather(1, tokens) > 0).all()


def test_weights_that_are_no_numbers_are_told_by_their_sum() -> None:
    weights = torch.ones(2, 100)
    weights[0, 3] = float("nan")
    tokens, sums = inverse_cdf(weights, torch.full((2, 1), 0.5, dtype=torch.float64))
    assert sums.isnan().flatten().tolist() == [True, False]
    assert tokens[1].item() == 50
