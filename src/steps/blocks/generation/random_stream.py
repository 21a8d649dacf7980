"""Random numbers that belong to a sample and not to a batch.

A sample's uniform numbers are a pure function of its key and of the position of the token, so a
batch may be cut, ordered or shrunk in any way. The function is splitmix64 (Steele, Lea and Flood,
"Fast splittable pseudorandom number generators", 2014), written in wrapping 64-bit integers.

Shape legend: ``_B`` rows, ``_V`` vocabulary, ``_N`` samples from a row, ``_K`` blocks of the
vocabulary, ``_W`` tokens of a block.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

BLOCK = 64
"""Tokens that are summed as one block in the first step."""

ONE_STEP = 4096
"""Largest vocabulary for which one step is faster than two."""


def sample_keys(seed: int | Sequence[int], prompts: int, samples: int) -> Tensor:
    """int64 keys [prompts, samples]; prompt i is named by ``seed`` and i, or by ``seed[i]``."""
    if isinstance(seed, int):
        named = _mix(torch.arange(prompts) + _mix(torch.tensor(_wrap(seed))))
    else:
        assert len(seed) == prompts, "one seed per prompt"
        named = _mix(torch.tensor([_wrap(one) for one in seed], dtype=torch.int64))
    return _mix(named[:, None] + torch.arange(samples))


def uniforms(keys: Tensor, positions: int | Tensor) -> Tensor:
    """float64 numbers in [0, 1), one per key, for the token at ``positions`` (broadcast).

    They have 52 bits: with 53, a number times the sum of the weights could round up to that sum.
    """
    # The key is mixed before the position is added: else the streams of keys that lie close to
    # each other would be one stream, shifted.
    bits = _mix(_mix(keys) + positions)
    return _shift(bits, 12).double() * 2.0**-52


def inverse_cdf(weights_BV: Tensor, numbers_BN: Tensor) -> tuple[Tensor, Tensor]:
    """Token ids [B, N] by inverse CDF, and the sum of each row's weights, float64 [B, 1].

    ``weights_BV`` are not negative and need not sum to one; ``numbers_BN`` are in [0, 1]. The
    token is the first whose cumulative weight lies strictly above ``number * sum``, with all sums
    in float64. In a large vocabulary it is found in two steps, a block of tokens and then the
    token in it, so that only one block is summed up token by token. A token of weight 0 is never
    sampled. A row of weights that are not numbers gives an id of no meaning, and a sum that is not
    a number.
    """
    if weights_BV.shape[1] <= ONE_STEP:
        ends_BV = weights_BV.cumsum(-1, dtype=torch.float64)
        sums_B1 = ends_BV[:, -1:]
        return _first_above(ends_BV, numbers_BN * sums_B1), sums_B1
    blocks_BKW = _blocks(weights_BV)
    ends_BK = blocks_BKW.sum(-1, dtype=torch.float64).cumsum(-1)
    sums_B1 = ends_BK[:, -1:]
    targets_BN = numbers_BN * sums_B1
    # the block of each target, then the token inside it
    block_BN = _first_above(ends_BK, targets_BN)
    before_BN = F.pad(ends_BK, (1, 0)).gather(1, block_BN)
    here = block_BN[:, :, None].expand(-1, -1, blocks_BKW.shape[2])
    inner_BNW = blocks_BKW.gather(1, here).double().cumsum(-1)
    within_BN1 = _first_above(inner_BNW, (targets_BN - before_BN)[:, :, None])
    return block_BN * BLOCK + within_BN1[:, :, 0], sums_B1


def _first_above(ends: Tensor, targets: Tensor) -> Tensor:
    """Index of the first of the rising ``ends [.., n]`` strictly above each target ``[.., m]``.

    A target that rounding has put above the last end counts as just below it; a target of 0 skips
    ends of 0. Only ends that are not numbers leave nothing to be found.
    """
    within = _below(targets, ends[..., -1:])
    return torch.searchsorted(ends, within, right=True).clamp_(max=ends.shape[-1] - 1)


def _blocks(weights_BV: Tensor) -> Tensor:
    """``[B, blocks, BLOCK]``; the last block is filled up with weights of 0."""
    missing = -weights_BV.shape[1] % BLOCK
    whole = F.pad(weights_BV, (0, missing)) if missing else weights_BV
    return whole.unflatten(1, (-1, BLOCK))


def _below(targets: Tensor, limits: Tensor) -> Tensor:
    """``targets``, at most the largest float64 below ``limits``."""
    return torch.minimum(targets, torch.nextafter(limits, torch.zeros_like(limits)))


def _mix(state: Tensor) -> Tensor:
    """The output function of splitmix64 over wrapping int64."""
    state = state + _wrap(0x9E3779B97F4A7C15)
    state = (state ^ _shift(state, 30)) * _wrap(0xBF58476D1CE4E5B9)
    state = (state ^ _shift(state, 27)) * _wrap(0x94D049BB133111EB)
    return state ^ _shift(state, 31)


def _shift(state: Tensor, bits: int) -> Tensor:
    """Logical shift to the right: the sign bit does not spread."""
    return (state >> bits) & ((1 << (64 - bits)) - 1)


def _wrap(value: int) -> int:
    """The int64 with the same 64 bits."""
    return (value + 2**63) % 2**64 - 2**63
