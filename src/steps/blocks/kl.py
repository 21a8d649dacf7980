"""Estimates of a KL divergence from the log-probs of sampled tokens.

``KL(p || q)`` for tokens drawn from ``p``, with ``r = log q - log p`` (Schulman, "Approximating KL
divergence", 2020): ``k1 = -r`` is unbiased, ``k2 = r^2 / 2`` has little variance, and
``k3 = e^r - 1 - r`` is unbiased and never negative.
"""

from __future__ import annotations

import torch
from torch import Tensor

from nemotron_style.steps.blocks.loss_option import KL_KINDS


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
    ratio = reference - logprobs
    if input_clamp is not None:
        ratio = ratio.clamp(-input_clamp, input_clamp)
    estimate = _estimate(ratio, kind)
    return estimate if output_clamp is None else estimate.clamp(-output_clamp, output_clamp)


def weighted_kl(
    current: Tensor,
    reference: Tensor,
    generation: Tensor | None,
    *,
    kind: str,
    input_clamp: float | None = None,
    output_clamp: float | None = None,
    differentiable_weight: bool = True,
) -> Tensor:
    """The estimate under the policy of now, for tokens that another policy may have drawn.

    ``w * k`` with ``w = e^(current - generation)``, or ``e^(current - sg(current))`` (which is 1)
    where no ``generation`` is given. The gradient of an expectation under the policy also moves
    the policy: with ``differentiable_weight`` it flows through ``w``, except where the input
    clamp acts, and ``w * k`` is what the output clamp bounds (NeMo-RL from v0.7). Without, ``w``
    is a constant and the clamp bounds ``k`` alone (NeMo-RL v0.6.0): the value is the same where
    no clamp acts, the gradient is biased. A weight that is not finite counts as 0.
    """
    base = current.detach() if generation is None else generation
    weight = (current - base).exp().nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
    if not differentiable_weight:
        clamps = {"input_clamp": input_clamp, "output_clamp": output_clamp}
        return weight.detach() * estimate_kl(current, reference, kind=kind, **clamps)
    if input_clamp is not None:
        acts = (reference - current).abs() > input_clamp
        weight = torch.where(acts, weight.detach(), weight)
    weighted = weight * estimate_kl(current, reference, kind=kind, input_clamp=input_clamp)
    return weighted if output_clamp is None else weighted.clamp(-output_clamp, output_clamp)


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
