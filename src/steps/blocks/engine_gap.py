"""How far a generation engine's log-probs are from the trainer's, on the same tokens.

Two programs compute the same network, and each rounds in its own way. A policy gradient divides
probabilities of the one by those of the other, so they are compared before a run begins: a gap
beyond rounding means that the engine holds other weights, or samples from another distribution
than it reports.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from nemotron_style.runtime.errors import Problem, StepFailed

LIMITS = {"in_process": 1.001, "vllm": 1.1}
"""Below what ``token_mult_prob_error`` has to stay, by the name of the engine.

1.1 is what NeMo-RL accepts of its runs with vLLM, which decode in bfloat16.
"""


@dataclass(frozen=True)
class EngineGap:
    """``token_mult_prob_error`` is the mean over tokens of ``exp(|engine - trainer|)``, 1 for two
    that agree (a metric of NeMo-RL); ``max_log_prob_difference`` is the largest ``|engine -
    trainer|`` of a token.
    """

    tokens: int
    token_mult_prob_error: float
    max_log_prob_difference: float

    def require(self, limit: float, *, engine: str) -> None:
        """Raise StepFailed when the error is not below ``limit``, or not a number."""
        if self.token_mult_prob_error < limit:
            return
        raise StepFailed(
            Problem(
                where=f"generation engine {engine}",
                key="token_mult_prob_error",
                what="engine and trainer give the same tokens other log-probs",
                got=f"{self.token_mult_prob_error:.6g}, with log-probs up to "
                f"{self.max_log_prob_difference:.3g} apart",
                allowed=f"below {limit:g}",
                fix="see that both hold the same weights, in the same type, at one temperature",
            )
        )


def measure_gap(engine: Tensor, trainer: Tensor, mask: Tensor) -> EngineGap:
    """Compare log-probs of one shape (``[B, N, R]``, say) where ``mask`` is on, in float64.

    ``engine`` holds what the sampling distribution gave each token when it was drawn, ``trainer``
    what the trainer's forward pass gives it under the same temperature. Both must be plain
    distributions: with top-k, top-p or a penalty the engine's are of another one.
    """
    difference_T = (engine[mask].double() - trainer[mask].double()).abs()
    assert difference_T.numel(), "there is no token to compare"
    return EngineGap(
        tokens=difference_T.numel(),
        token_mult_prob_error=difference_T.exp().mean().item(),
        max_log_prob_difference=difference_T.max().item(),
    )
