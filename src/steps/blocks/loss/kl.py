"""Estimates of a KL divergence from the log-probs of sampled tokens.

``KL(p || q)`` for tokens drawn from ``p``, with ``r = log q - log p`` (Schulman, "Approximating KL
divergence", 2020): ``k1 = -r`` is unbiased, ``k2 = r^2 / 2`` has little variance, and
``k3 = e^r - 1 - r`` is unbiased and never negative.
"""

from __future__ import annotations

import torch
from torch import Tensor

from nemotron_style.steps.blocks.loss.clipped_pg_config import KL_KINDS, LossOptions


def estimate_kl(
    logprobs: Tensor,
    reference: Tensor,
    *,
    kind: str = "k3",
    input_clamp: float | None = None,
    output_clamp: float | None = None,
) -> Tensor:
    """``KL(policy || reference)`` of each token, in the shape of ``logprobs``.

    ``r`` is clamped to ``+-input_clamp`` and the estimate to ``+-output_clamp``. Without clamps
    k3 overflows float32 where the reference finds a token more than ``e^88`` times likelier.
    Raises ValueError for an unknown ``kind``.
    """
    ratio = _bound(reference - logprobs, input_clamp)
    return _bound(_estimate(ratio, kind), output_clamp)


def weighted_kl(
    current: Tensor, reference: Tensor, generation: Tensor, options: LossOptions
) -> Tensor:
    """The estimate under the policy of now, for tokens that another policy may have drawn.

    ``w * k`` with ``w = e^(current - generation)`` under ``use_on_policy_kl_approximation``, else
    ``e^(current - sg(current))``, which is 1. The gradient of an expectation under the policy
    also moves the policy: it flows through ``w``, except where the input clamp acts, and
    ``w * k`` is what the output clamp bounds. With ``compat: v0.6.0``, ``w`` is a constant and
    the clamp bounds ``k`` alone: the value is the same where no clamp acts, the gradient of k1
    and k3 is biased. A weight that is not finite counts as 0.
    """
    kind = options.reference_policy_kl_type
    input_clamp, most = options.kl_input_clamp_value, options.kl_output_clamp_value
    base = generation if options.use_on_policy_kl_approximation else current.detach()
    weight = (current - base).exp().nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
    estimate = estimate_kl(current, reference, kind=kind, input_clamp=input_clamp)
    if not options.is_head:
        return weight.detach() * _bound(estimate, most)
    if input_clamp is not None:
        acts = (reference - current).abs() > input_clamp
        weight = torch.where(acts, weight.detach(), weight)
    return _bound(weight * estimate, most)


def estimate_js(one: Tensor, other: Tensor) -> Tensor:
    """Jensen-Shannon divergence of each token: the mean k3 of both towards their mixture."""
    mixture = (0.5 * one.exp() + 0.5 * other.exp()).log()
    towards = [estimate_kl(mixture, each, kind="k3") for each in (one, other)]
    return 0.5 * (towards[0] + towards[1])


def _estimate(ratio: Tensor, kind: str) -> Tensor:
    if kind == "k1":
        return -ratio
    if kind == "k2":
        return ratio.square() / 2
    if kind == "k3":
        return ratio.exp() - 1 - ratio
    raise ValueError(f"unknown kind of KL estimate {kind!r}; allowed: {', '.join(KL_KINDS)}")


def _bound(values: Tensor, most: float | None) -> Tensor:
    return values if most is None else values.clamp(-most, most)
