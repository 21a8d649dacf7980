"""Random draws that belong to a sample and not to a batch.

A sample's uniform numbers are a pure function of its key and of the position of the token, so a
batch may be cut, ordered or shrunk in any way. The function is splitmix64 (Steele, Lea and Flood,
"Fast splittable pseudorandom number generators", 2014), written in wrapping 64-bit integers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor


def seed_of(*parts: int | str) -> int:
    """A 64-bit seed named by ``parts``: the same on every machine, unrelated to its neighbours."""
    name = "/".join(str(part) for part in parts)
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big")


def sample_keys(seed: int | Sequence[int], prompts: int, samples: int) -> Tensor:
    """int64 keys [prompts, samples]; prompt i is named by ``seed`` and i, or by ``seed[i]``."""
    if isinstance(seed, int):
        named = _mix(torch.arange(prompts) + _mix(torch.tensor(_wrap(seed))))
    else:
        assert len(seed) == prompts, "one seed per prompt"
        named = _mix(torch.tensor([_wrap(one) for one in seed], dtype=torch.int64))
    return _mix(named[:, None] + torch.arange(samples))


def uniforms(keys_B: Tensor, position: int) -> Tensor:
    """float64 numbers in [0, 1), one per key, for the token at ``position``.

    They have 52 bits: with 53, a draw scaled by the sum of the weights could round up to that sum.
    """
    bits = _mix(_mix(keys_B) + position)
    return _shift(bits, 12).double() * 2.0**-52


def choose(logits_BV: Tensor, keys_B: Tensor, position: int, *, temperature: float) -> Tensor:
    """One token id per row, drawn from softmax(logits / temperature) by inverse CDF.

    Temperature 0 takes the likeliest token. The cumulative sum is kept in float64 and the draw is
    scaled by its last entry, so no token without probability can be reached.
    """
    if temperature == 0:
        return logits_BV.argmax(-1)
    cumulative = torch.softmax(logits_BV / temperature, -1).cumsum(-1, dtype=torch.float64)
    draw = uniforms(keys_B, position)[:, None] * cumulative[:, -1:]
    # right=True: the first entry strictly above the draw, so a draw of 0 skips weights of 0.
    # Only logits that are not numbers leave no such entry; their log-prob will tell.
    chosen = torch.searchsorted(cumulative, draw, right=True)[:, 0]
    return chosen.clamp_(max=logits_BV.shape[1] - 1)


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
