"""How far a generation engine's log-probs are from the trainer's, on the same tokens.

Two programs compute the same network, and each rounds in its own way. A policy gradient divides
probabilities of the one by those of the other, so they are compared before a run begins: a gap
beyond rounding means that the engine holds other weights, or samples from another distribution
than it reports.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from nemotron_style.runtime.errors import Problem, StepFailed
from nemotron_style.steps.blocks.generation.engine import Sample
from nemotron_style.steps.blocks.model.prefix_packing import Group, pack
from nemotron_style.steps.blocks.training.microbatch import score


@dataclass(frozen=True)
class EngineGap:
    """``token_mult_prob_error`` is the mean over tokens of ``exp(|engine - trainer|)``, 1 for two
    that agree (a metric of NeMo-RL); ``max_log_prob_difference`` is the largest ``|engine -
    trainer|`` of a token.
    """

    tokens: int
    token_mult_prob_error: float
    max_log_prob_difference: float

    def require(self, limit: float, *, engine: str, key: str = "") -> None:
        """Raise StepFailed when the error is not below ``limit`` (at ``key``), or not a number."""
        if self.token_mult_prob_error < limit:
            return
        raise StepFailed(
            Problem(
                where=f"generation engine {engine}",
                key="token_mult_prob_error",
                what="engine and trainer give the same tokens other log-probs",
                got=f"{self.token_mult_prob_error:.6g}, with log-probs up to "
                f"{self.max_log_prob_difference:.3g} apart",
                allowed=f"below {limit:g}" + (f" ({key})" if key else ""),
                fix="see that both hold the same weights, in the same type, at one temperature",
            )
        )


def measure_gap(engine: Tensor, trainer: Tensor) -> EngineGap:
    """Compare log-probs of the same tokens, one shape, in float64.

    ``engine`` holds what the sampling distribution gave each token when it was sampled, ``trainer``
    what the trainer's forward pass gives it under the same temperature. Both must be plain
    distributions: with top-k, top-p or a penalty the engine's are of another one.
    """
    difference = (engine.double() - trainer.double()).abs()
    assert difference.numel(), "there is no token to compare"
    return EngineGap(
        tokens=difference.numel(),
        token_mult_prob_error=difference.exp().mean().item(),
        max_log_prob_difference=difference.max().item(),
    )


def measure_sample_gap(
    model: nn.Module,
    prompts: Sequence[Sequence[int]],
    groups: Sequence[Sequence[Sample]],
    *,
    temperature: float = 1.0,
) -> EngineGap:
    """:func:`measure_gap` of ``groups`` that an engine sampled for ``prompts`` at ``temperature``.

    The trainer's forward pass takes one prompt with its samples at a time; a few prompts will do.
    """
    batches = [
        pack([Group(prompt, [sample.tokens for sample in group])])
        for prompt, group in zip(prompts, groups, strict=True)
    ]
    scored = score(model, batches, temperature=temperature)
    pairs = zip(scored, batches, strict=True)
    said = [value for group in groups for sample in group for value in sample.log_probs]
    return measure_gap(
        torch.tensor(said, dtype=torch.float64),
        torch.cat([seen_BNR[batch.mask_BNR] for seen_BNR, batch in pairs]),
    )
