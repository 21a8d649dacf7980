"""Estimates of a KL divergence from the log-probs of sampled tokens.

``KL(p || q)`` for tokens drawn from ``p``, with ``r = log q - log p`` (Schulman, "Approximating KL
divergence", 2020): ``k1 = -r`` is unbiased, ``k2 = r^2 / 2`` has little variance, and
``k3 = e^r - 1 - r`` is unbiased and never negative.
"""

from __future__ import annotations

import torch
from torch import Tensor

from nemotron_style.steps.blocks.loss.clipped_pg_config import ClippedPGConfig
from nemotron_style.steps.blocks.loss.exponent import bounded_exp


def estimate_kl(
    logprobs: Tensor,
    reference: Tensor,
    *,
    kind: str = "k3",
    input_clamp: float | None = None,
    output_clamp: float | None = None,
) -> Tensor:
    """``KL(policy || reference)`` of each token, in the shape of ``logprobs``.

    ``r`` is clamped to ``+-input_clamp`` and the estimate to ``+-output_clamp``. Without either,
    k3 is a large constant where the reference finds a token more than e^80 times likelier, which
    float32 cannot hold. Raises ValueError for an unknown ``kind``.
    """
    r = _bound(reference - logprobs, input_clamp)
    match kind:
        case "k1":
            estimate = -r
        case "k2":
            estimate = r.square() / 2
        case "k3":
            estimate = bounded_exp(r)[0] - 1 - r
        case _:
            raise ValueError(f"unknown kind of KL estimate {kind!r}; allowed: k1, k2, k3")
    return _bound(estimate, output_clamp)


def weighted_kl(
    current: Tensor, reference: Tensor, generation: Tensor, config: ClippedPGConfig
) -> tuple[Tensor, Tensor]:
    """The estimate under the current policy, for tokens that another policy may have drawn.

    Returns it with the tokens that have none, being too large for their type: their estimate is
    0, without gradient.

    ``w * k`` with ``w = e^(current - generation)`` under ``use_on_policy_kl_approximation``, else
    ``e^(current - sg(current))``, which is 1. The gradient of an expectation under the policy also
    moves the policy: it flows through ``w``, except where the input clamp acts, and the output
    clamp bounds ``w * k``. With ``compat: v0.6.0``, ``w`` is a constant and the clamp bounds ``k``
    alone: the same value where no clamp acts, but the gradient of k1 and k3 is biased.
    """
    kind = config.reference_policy_kl_type
    input_clamp, output_clamp = config.kl_input_clamp_value, config.kl_output_clamp_value
    base = generation if config.use_on_policy_kl_approximation else current.detach()
    weight, excluded = bounded_exp(current - base)
    estimate = estimate_kl(current, reference, kind=kind, input_clamp=input_clamp)
    if kind == "k3" and output_clamp is None:
        excluded = excluded | bounded_exp(_bound(reference - current, input_clamp))[1]
    if not config.is_head:
        weighted = weight.detach() * _bound(estimate, output_clamp)
        return torch.where(excluded, 0.0, weighted), excluded
    if input_clamp is not None:
        # A clamped estimate is a constant; the weight must not go on pulling at its token.
        clamped = (reference - current).abs() > input_clamp
        weight = torch.where(clamped, weight.detach(), weight)
    weighted = _bound(weight * estimate, output_clamp)
    return torch.where(excluded, 0.0, weighted), excluded


def estimate_js(one: Tensor, other: Tensor) -> Tensor:
    """Jensen-Shannon divergence of each token: the mean k3 of both towards their mixture."""
    mixture = (0.5 * one.exp() + 0.5 * other.exp()).log()
    return 0.5 * (estimate_kl(mixture, one) + estimate_kl(mixture, other))


def _bound(values: Tensor, most: float | None) -> Tensor:
    return values if most is None else values.clamp(-most, most)
