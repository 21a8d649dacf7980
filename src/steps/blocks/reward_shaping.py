"""What happens to a reward before it is compared: a linear map, and a price on length.

Shape legend: ``_B`` samples. Source: NeMo-RL's ``reward_scaling`` and ``reward_shaping``; the soft
overlong punishment is DAPO's (arXiv 2503.14476, section 3.4).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class RewardScaling:
    """From the band ``[source_min, source_max]`` to ``[target_min, target_max]``."""

    enabled: bool = False
    source_min: float = 0.0
    source_max: float = 1.0
    target_min: float = 0.0
    target_max: float = 1.0

    def __post_init__(self) -> None:
        if self.source_min >= self.source_max:
            raise ValueError(f"source_max ({self.source_max}) must exceed source_min")


@dataclass(frozen=True, kw_only=True)
class RewardShaping:
    """Either a factor on truncated samples, or DAPO's punishment of long ones."""

    enabled: bool = False
    overlong_buffer_length: int | None = 128
    overlong_buffer_penalty: float | None = 1.0
    max_response_length: int | None = None
    stop_properly_penalty_coef: float | None = None

    def __post_init__(self) -> None:
        coefficient, penalty = self.stop_properly_penalty_coef, self.overlong_buffer_penalty
        length, most = self.overlong_buffer_length, self.max_response_length
        if not self.enabled:
            return
        if coefficient is not None:
            if not 0 <= coefficient <= 1:
                raise ValueError(f"stop_properly_penalty_coef ({coefficient}) must be 0 to 1")
            return
        if penalty is None or length is None or most is None:
            raise ValueError(
                "shaping needs overlong_buffer_length, overlong_buffer_penalty and "
                "max_response_length, or stop_properly_penalty_coef"
            )
        if penalty < 0 or length <= 0 or most < length:
            raise ValueError(
                f"overlong_buffer_penalty ({penalty}) must not be negative and "
                f"overlong_buffer_length ({length}) lie between 1 and max_response_length ({most})"
            )


def scale_rewards(rewards_B: Tensor, scaling: RewardScaling) -> Tensor:
    """``tmin + (clip(r, smin, smax) - smin) / (smax - smin) * (tmax - tmin)``, float64.

    With equal bands it only clips: the remedy for rewards that run away.
    """
    if not scaling.enabled:
        return rewards_B.double()
    low, high = scaling.source_min, scaling.source_max
    share_B = (rewards_B.double().clamp(low, high) - low) / (high - low)
    return scaling.target_min + share_B * (scaling.target_max - scaling.target_min)


def shape_rewards(
    rewards_B: Tensor, shaping: RewardShaping, *, lengths_B: Tensor, truncated_B: Tensor
) -> Tensor:
    """Rewards after the price on length, float64.

    With ``stop_properly_penalty_coef`` c, truncated samples get ``c * r`` (which *raises* a
    negative reward) and nothing else happens. Otherwise, with the length allowed
    ``max_response_length - overlong_buffer_length``, every token beyond it costs
    ``overlong_buffer_penalty / overlong_buffer_length``, without an end. ``lengths_B`` counts the
    tokens of a response.
    """
    rewards_B = rewards_B.double()
    if not shaping.enabled:
        return rewards_B
    if shaping.stop_properly_penalty_coef is not None:
        return torch.where(
            truncated_B.bool(), shaping.stop_properly_penalty_coef * rewards_B, rewards_B
        )
    buffer, most = shaping.overlong_buffer_length, shaping.max_response_length
    assert buffer is not None and most is not None and shaping.overlong_buffer_penalty is not None
    beyond_B = lengths_B.double() - (most - buffer)
    return rewards_B - (beyond_B / buffer * shaping.overlong_buffer_penalty).clamp(min=0.0)
