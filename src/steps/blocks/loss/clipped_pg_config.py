"""Settings of the clipped policy-gradient loss, named as in NeMo-RL's ``loss_fn``; no torch.

``compat`` chooses between two behaviours of the reference. ``head`` (v0.7.0 and after): the
gradient of the KL penalty is unbiased, ``force_on_policy_ratio`` also replaces the log-probs of
the step before, and all settings exist. ``v0.6.0``: see :func:`kl.weighted_kl`; the log-probs of
the step before are used as they were computed, and the settings of :data:`NEWER` are refused.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, Self

from pydantic import Field, model_validator

from nemotron_style.runtime.config.model import Section

NEWER = ("use_cispo", "use_kl_in_reward", "positive_example_nll_weight")
"""What NeMo-RL v0.6.0 does not have, besides a lower bound for ``tis``."""


class ClippedPGConfig(Section):
    """``loss_fn``; refuses settings that do not go together."""

    disable_ppo_ratio: bool = False
    token_level_loss: bool = True
    sequence_level_importance_ratios: bool = False
    ratio_clip_min: float = Field(default=0.2, ge=0)
    ratio_clip_max: float = Field(default=0.2, ge=0)
    ratio_clip_c: float | None = Field(default=None, gt=1)
    reference_policy_kl_penalty: float = Field(default=0.01, ge=0)
    reference_policy_kl_type: Literal["k1", "k2", "k3"] = "k3"
    kl_input_clamp_value: float | None = Field(default=20.0, gt=0)
    kl_output_clamp_value: float | None = Field(default=10.0, gt=0)
    use_kl_in_reward: bool = False
    use_importance_sampling_correction: bool = False
    truncated_importance_sampling_type: Literal["tis", "icepop", "seq-mask-tis"] | None = None
    truncated_importance_sampling_ratio: float | None = Field(default=None, gt=0)
    truncated_importance_sampling_ratio_min: float | None = None
    use_on_policy_kl_approximation: bool = False
    force_on_policy_ratio: bool = False
    use_cispo: bool = False
    positive_example_nll_weight: float = Field(default=0.0, ge=0)
    compat: Literal["head", "v0.6.0"] = "head"

    @property
    def kl_weight(self) -> float:
        """The factor of the KL term in the loss: 0 when it is a part of the reward."""
        return 0.0 if self.use_kl_in_reward else self.reference_policy_kl_penalty

    @property
    def is_head(self) -> bool:
        return self.compat == "head"

    @model_validator(mode="after")
    def _check(self) -> Self:
        if problems := [*self._wrong_truncation(), *self._wrong_pairs(), *self._too_new()]:
            raise ValueError("; ".join(problems))
        return self

    def _wrong_truncation(self) -> Iterator[str]:
        kind = self.truncated_importance_sampling_type
        high = self.truncated_importance_sampling_ratio
        low = self.truncated_importance_sampling_ratio_min
        if kind is None:
            if high is not None or low is not None:
                yield "truncated_importance_sampling_ratio needs truncated_importance_sampling_type"
            return
        if not self.use_importance_sampling_correction:
            yield f"{kind} needs use_importance_sampling_correction"
        if high is None:
            yield f"{kind} needs truncated_importance_sampling_ratio"
        if kind != "tis" and low is None:
            yield f"{kind} needs truncated_importance_sampling_ratio_min"
        if low is not None and high is not None and low > high:
            yield f"truncated_importance_sampling_ratio_min ({low}) exceeds the ratio ({high})"

    def _wrong_pairs(self) -> Iterator[str]:
        by_sequence = self.sequence_level_importance_ratios
        if by_sequence and self.token_level_loss:
            yield "sequence_level_importance_ratios needs token_level_loss false"
        if by_sequence and self.truncated_importance_sampling_type == "seq-mask-tis":
            yield "seq-mask-tis does not go with sequence_level_importance_ratios"
        if self.use_cispo:
            excluded = {
                "disable_ppo_ratio": self.disable_ppo_ratio,
                "force_on_policy_ratio": self.force_on_policy_ratio,
                "sequence_level_importance_ratios": by_sequence,
                "ratio_clip_c": self.ratio_clip_c is not None,
                "token_level_loss false": not self.token_level_loss,
            }
            yield from (f"use_cispo does not go with {name}" for name, on in excluded.items() if on)

    def _too_new(self) -> Iterator[str]:
        if self.is_head:
            return
        yield from (f"{name} is not in v0.6.0" for name in NEWER if getattr(self, name))
        low = self.truncated_importance_sampling_ratio_min
        if self.truncated_importance_sampling_type == "tis" and low is not None:
            yield "tis has no truncated_importance_sampling_ratio_min in v0.6.0"
