"""Rotary positions: the angles of a model, with or without scaling, and turning by them.

Each pair ``(x_i, x_{i + half})`` of the rotated part of a head turns by its frequency times the
token's position. Scaling changes the frequencies, so that a model serves longer rows than it was
first trained on:

* ``linear`` divides all of them (Chen et al., 2023, arXiv 2306.15595);
* ``llama3`` divides the slow ones, leaves the fast ones, and blends between;
* ``yarn`` does so by how often a pair turns within the first length, and makes queries and keys
  a little longer (Peng et al., 2023, arXiv 2309.00071).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from nemotron_style.steps.blocks.settings.model_config import ModelConfig, RopeScaling


def rotary_tables(
    positions: Tensor, config: ModelConfig, *, local: bool = False
) -> tuple[Tensor, Tensor]:
    """cos and signed sin of the rotary angles at ``positions`` ([S] or [B, S]).

    Both are ``[S, 1 or B, 1, 1, rotary size]`` in float32. The sine of the first half carries the
    minus sign of the rotation, so that rotating is ``x * cos + roll(x) * sin``. ``local`` gives
    those of layers with a window, which differ where the model has a ``local_rope_theta``.
    """
    half = torch.arange(0, config.rotary_size, 2, dtype=torch.float32, device=positions.device)
    own = config.local_rope_theta if local else None
    frequencies = (own or config.rope_theta) ** -(half / config.rotary_size)
    length = 1.0
    if config.rope_scaling and not own:
        frequencies = _scale(frequencies, config.rope_scaling, config)
        length = _attention_factor(config.rope_scaling)
    by_token = positions.t() if positions.dim() == 2 else positions[:, None]
    angles = by_token[:, :, None, None, None].float() * frequencies
    cos, sin = angles.cos(), angles.sin()
    if length != 1.0:
        cos, sin = cos * length, sin * length
    return torch.cat([cos, cos], dim=-1), torch.cat([-sin, sin], dim=-1)


def rotate(states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn the first ``cos.shape[-1]`` numbers of ``[S, B, .., head size]``; the rest stay."""
    turning = cos.shape[-1]
    if turning < states.shape[-1]:
        turned, rest = states.split([turning, states.shape[-1] - turning], dim=-1)
        return torch.cat([rotate(turned, cos, sin), rest], dim=-1)
    swapped = states.roll(turning // 2, dims=-1)
    return torch.addcmul(states * cos, swapped, sin)


def _scale(frequencies: Tensor, scaling: RopeScaling, config: ModelConfig) -> Tensor:
    """The frequencies after scaling."""
    slow = frequencies / scaling.factor
    if scaling.rope_type == "linear":
        return slow
    keep = (
        _kept_by_llama3(frequencies, scaling)
        if scaling.rope_type == "llama3"
        else _kept_by_yarn(frequencies, scaling, config)
    )
    return slow * (1 - keep) + frequencies * keep


def _kept_by_llama3(frequencies: Tensor, scaling: RopeScaling) -> Tensor:
    """How much of each frequency stays: 1 for fast ones, 0 for slow ones, a ramp between."""
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    assert low is not None
    assert high is not None
    assert scaling.original_max_position_embeddings is not None
    # how often a pair turns within the length that the model was first trained on
    turns = scaling.original_max_position_embeddings * frequencies / (2 * math.pi)
    return ((turns - low) / (high - low)).clamp(0, 1)


def _kept_by_yarn(frequencies: Tensor, scaling: RopeScaling, config: ModelConfig) -> Tensor:
    """The same; the ramp runs over the index of the pair."""
    first = scaling.original_max_position_embeddings
    assert first is not None

    def index_of(turns: float) -> float:
        """Index of the pair that turns so often within the first length."""
        exponent = math.log(first / (turns * 2 * math.pi)) / math.log(config.rope_theta)
        return config.rotary_size * exponent / 2

    low, high = index_of(scaling.beta_fast or 32), index_of(scaling.beta_slow or 1)
    if scaling.truncate is not False:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, config.rotary_size - 1)
    width = high - low or 0.001  # a ramp of no width is a step
    index = torch.arange(len(frequencies), dtype=torch.float32, device=frequencies.device)
    return 1 - ((index - low) / width).clamp(0, 1)


def _attention_factor(scaling: RopeScaling) -> float:
    """What yarn multiplies the length of queries and keys by; 1 for the others."""
    if scaling.rope_type != "yarn":
        return 1.0
    if scaling.attention_factor is not None:
        return scaling.attention_factor

    def growth(scale: float) -> float:
        return 0.1 * scale * math.log(scaling.factor) + 1 if scaling.factor > 1 else 1.0

    if scaling.mscale and scaling.mscale_all_dim:
        return growth(scaling.mscale) / growth(scaling.mscale_all_dim)
    return growth(1.0)
