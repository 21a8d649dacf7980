"""The options of the policy loss, under the names that NeMo-RL's ``loss_fn`` gives them; no torch.

``compat`` chooses between two behaviours of the reference. ``head`` (v0.7.0 and after): the
gradient of the KL penalty is unbiased, ``force_on_policy_ratio`` also replaces the log-probs of
the step before, and all options exist. ``v0.6.0``: see :func:`kl.weighted_kl`; the log-probs of
the step before are used as they were computed, and the options of :data:`NEWER` are refused.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

TRUNCATIONS = ("tis", "icepop", "seq-mask-tis")
KL_KINDS = ("k1", "k2", "k3")
COMPATS = ("head", "v0.6.0")
NEWER = ("use_cispo", "use_kl_in_reward", "positive_example_nll_weight")
"""What NeMo-RL v0.6.0 does not have, besides a lower bound for ``tis``."""


@dataclass(frozen=True, kw_only=True)
class LossOptions:
    """Every option of the loss; ``ValueError`` names all that do not go together."""

    disable_ppo_ratio: bool = False
    token_level_loss: bool = True
    sequence_level_importance_ratios: bool = False
    ratio_clip_min: float = 0.2
    ratio_clip_max: float = 0.2
    ratio_clip_c: float | None = None
    reference_policy_kl_penalty: float = 0.01
    reference_policy_kl_type: str = "k3"
    kl_input_clamp_value: float | None = 20.0
    kl_output_clamp_value: float | None = 10.0
    use_kl_in_reward: bool = False
    use_importance_sampling_correction: bool = False
    truncated_importance_sampling_type: str | None = None
    truncated_importance_sampling_ratio: float | None = None
    truncated_importance_sampling_ratio_min: float | None = None
    use_on_policy_kl_approximation: bool = False
    force_on_policy_ratio: bool = False
    use_cispo: bool = False
    positive_example_nll_weight: float = 0.0
    compat: Literal["head", "v0.6.0"] = "head"

    def __post_init__(self) -> None:
        problems = [*self._wrong_values(), *self._wrong_truncation(), *self._wrong_pairs()]
        if problems:
            raise ValueError("; ".join(problems))

    @property
    def kl_weight(self) -> float:
        """The factor of the KL term in the loss: 0 when it is a part of the reward."""
        return 0.0 if self.use_kl_in_reward else self.reference_policy_kl_penalty

    @property
    def is_head(self) -> bool:
        return self.compat == "head"

    def _wrong_values(self) -> Iterator[str]:
        if self.compat not in COMPATS:
            yield f"compat must be one of {', '.join(COMPATS)}, not {self.compat!r}"
        if self.reference_policy_kl_type not in KL_KINDS:
            allowed = ", ".join(KL_KINDS)
            yield f"reference_policy_kl_type {self.reference_policy_kl_type!r} is none of {allowed}"
        if self.ratio_clip_c is not None and not self.ratio_clip_c > 1:
            yield f"ratio_clip_c ({self.ratio_clip_c}) must exceed 1"
        for name in ("kl_input_clamp_value", "kl_output_clamp_value"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                yield f"{name} ({value}) must be positive"
        for name in ("ratio_clip_min", "ratio_clip_max", *NEWER[2:], "reference_policy_kl_penalty"):
            if not getattr(self, name) >= 0:
                yield f"{name} ({getattr(self, name)}) must not be negative"

    def _wrong_truncation(self) -> Iterator[str]:
        kind, high = self.truncated_importance_sampling_type, self._high
        low = self.truncated_importance_sampling_ratio_min
        if kind is None:
            if high is not None or low is not None:
                yield "truncated_importance_sampling_ratio needs truncated_importance_sampling_type"
            return
        if kind not in TRUNCATIONS:
            allowed = ", ".join(TRUNCATIONS)
            yield f"truncated_importance_sampling_type {kind!r} is none of {allowed}"
        if not self.use_importance_sampling_correction:
            yield f"{kind} needs use_importance_sampling_correction"
        if high is None or not high > 0:
            yield f"{kind} needs a positive truncated_importance_sampling_ratio"
        if kind in ("icepop", "seq-mask-tis") and low is None:
            yield f"{kind} needs truncated_importance_sampling_ratio_min"
        if None not in (low, high) and low > high:  # type: ignore[operator]
            yield f"truncated_importance_sampling_ratio_min ({low}) exceeds the ratio ({high})"

    @property
    def _high(self) -> float | None:
        return self.truncated_importance_sampling_ratio

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
        if not self.is_head:
            yield from (f"{name} is not in v0.6.0" for name in NEWER if getattr(self, name))
            low = self.truncated_importance_sampling_ratio_min
            if self.truncated_importance_sampling_type == "tis" and low is not None:
                yield "tis has no truncated_importance_sampling_ratio_min in v0.6.0"
