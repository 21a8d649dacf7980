"""What happens to a reward before it is compared: a linear map, and a price on length; no torch.

Source: NeMo-RL's ``reward_scaling`` and ``reward_shaping``; the soft overlong punishment is DAPO's
(arXiv 2503.14476, section 3.4).
"""

from __future__ import annotations

from typing import Self

from pydantic import model_validator

from nemotron_style.runtime.config.model import Section


class RewardScaling(Section):
    """``grpo.reward_scaling``: ``[source_min, source_max]`` to ``[target_min, target_max]``."""

    enabled: bool = False
    source_min: float = 0.0
    source_max: float = 1.0
    target_min: float = 0.0
    target_max: float = 1.0

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.source_min >= self.source_max:
            raise ValueError(f"source_max ({self.source_max}) must exceed source_min")
        return self


class RewardShaping(Section):
    """``grpo.reward_shaping``: a factor on truncated samples, or DAPO's punishment of long ones."""

    enabled: bool = False
    overlong_buffer_length: int | None = 128
    overlong_buffer_penalty: float | None = 1.0
    max_response_length: int | None = None
    stop_properly_penalty_coef: float | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        coefficient, penalty = self.stop_properly_penalty_coef, self.overlong_buffer_penalty
        length, most = self.overlong_buffer_length, self.max_response_length
        if not self.enabled:
            return self
        if coefficient is not None:
            if not 0 <= coefficient <= 1:
                raise ValueError(f"stop_properly_penalty_coef ({coefficient}) must be 0 to 1")
        elif penalty is None or length is None or most is None:
            raise ValueError(
                "shaping needs overlong_buffer_length, overlong_buffer_penalty and "
                "max_response_length, or stop_properly_penalty_coef"
            )
        elif penalty < 0 or length <= 0 or most < length:
            raise ValueError(
                f"overlong_buffer_penalty ({penalty}) must not be negative and "
                f"overlong_buffer_length ({length}) lie between 1 and max_response_length ({most})"
            )
        return self


def scale_reward(reward: float, scaling: RewardScaling) -> float:
    """``tmin + (clip(r, smin, smax) - smin) / (smax - smin) * (tmax - tmin)``; NaN stays NaN.

    With equal bands it only clips: the remedy for rewards that run away.
    """
    if not scaling.enabled:
        return reward
    low, high = scaling.source_min, scaling.source_max
    # In this order of arguments min and max hand a NaN through.
    share = (min(max(reward, low), high) - low) / (high - low)
    return scaling.target_min + share * (scaling.target_max - scaling.target_min)


def shape_reward(reward: float, shaping: RewardShaping, *, length: int, truncated: bool) -> float:
    """The reward after the price on its response's ``length`` in tokens.

    With ``stop_properly_penalty_coef`` c, a truncated sample gets ``c * r`` (which *raises* a
    negative reward) and nothing else happens. Otherwise every token beyond ``max_response_length -
    overlong_buffer_length`` costs ``overlong_buffer_penalty / overlong_buffer_length``, without an
    end.
    """
    if not shaping.enabled:
        return reward
    if shaping.stop_properly_penalty_coef is not None:
        return shaping.stop_properly_penalty_coef * reward if truncated else reward
    buffer, penalty = shaping.overlong_buffer_length, shaping.overlong_buffer_penalty
    most = shaping.max_response_length
    assert buffer is not None
    assert penalty is not None
    assert most is not None
    beyond = length - (most - buffer)
    return reward - max(beyond / buffer * penalty, 0.0)
