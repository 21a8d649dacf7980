"""The arithmetic of SteerLM 2.0: weights, baseline, loss; tensors alone.

A group is one prompt ``x`` with an attribute label ``a`` and ``n`` responses ``y_i`` drawn from
``Q'(y|a,x)``. A model that follows the label would spread its probability over them in proportion
to ``P(a|x,y_i) P(y_i|x) / Q'(y_i|a,x)``: the *target weights* ``w``. The model being trained
spreads it in proportion to ``Qtheta(y_i|a,x) / Q'(y_i|a,x)``: the *baseline* ``b``. The gradient of
the divergence between the two is that of ``sum_i (w_i - b_i) nll_i`` with ``w - b`` held fixed.

Shape legend: ``_P`` groups (one prompt each), ``_G`` responses of a group, ``_T`` tokens of a
response. Whatever is exponentiated is float64, because log-probs of whole responses are in the
hundreds while their differences decide.

Source: HelpSteer2 (arXiv 2406.08673), section on SteerLM 2.0.
"""

from __future__ import annotations

import torch
from torch import Tensor

DISTANCE_FLOOR = 1e-8
"""Added to both weights inside the distance, so that an unlikely response cannot divide by 0."""


def target_weights(log_p_a_PG: Tensor, log_p_y_PG: Tensor, log_q_PG: Tensor) -> Tensor:
    """``w_PG``: the share of each response under the distribution to be learnt; rows sum to 1."""
    return torch.softmax(log_p_a_PG.double() + log_p_y_PG.double() - log_q_PG.double(), dim=-1)


def response_logprob(token_logprobs_PGT: Tensor, mask_PGT: Tensor) -> Tensor:
    """``log Qtheta(y|a,x)_PG`` in float64: the sum over the tokens that the mask (0 or 1) keeps."""
    return (token_logprobs_PGT.double() * mask_PGT).sum(-1)


def baseline(log_q_theta_PG: Tensor, log_q_PG: Tensor) -> Tensor:
    """``b_PG``: the share of each response under the model as it is; rows sum to 1, no gradient."""
    return torch.softmax(log_q_theta_PG.detach().double() - log_q_PG.double(), dim=-1)


def response_scales(coefficients_PG: Tensor, token_counts_PG: Tensor, *, groups: int) -> Tensor:
    """The factor of each response's summed nll in the loss of a global batch of ``groups``.

    ``c_i / (groups * T_g)`` where ``c`` is ``w - b`` and ``T_g`` the mean number of loss tokens of
    the *whole* group. Nothing in it depends on which responses share a pass, so the sum of all
    passes is the same however the batch is cut.
    """
    mean_tokens_P1 = token_counts_PG.double().mean(-1, keepdim=True)
    return coefficients_PG / (groups * mean_tokens_P1)


def group_loss(token_logprobs_PGT: Tensor, mask_PGT: Tensor, scales_PG: Tensor) -> Tensor:
    """This pass's part of ``(1/P) sum_g (1/T_g) sum_i (w_i - b_i) nll_i``; a float64 scalar.

    Gradients reach ``token_logprobs_PGT`` alone; ``scales_PG`` come from :func:`response_scales`.
    """
    return -(scales_PG.detach() * response_logprob(token_logprobs_PGT, mask_PGT)).sum()


def distance(target_PG: Tensor, baseline_PG: Tensor) -> Tensor:
    """``KL(w || b)_P`` with :data:`DISTANCE_FLOOR` added to each share; 0 where they agree."""
    target, current = target_PG.double() + DISTANCE_FLOOR, baseline_PG.double() + DISTANCE_FLOOR
    return (target * (target / current).log()).sum(-1)


def effective_sample_size(target_PG: Tensor) -> Tensor:
    """``1 / sum_i w_i^2`` of each group: how many of its ``n`` responses really count."""
    return 1.0 / target_PG.double().square().sum(-1)


def sampler_gap(baseline_PG: Tensor) -> float:
    """``max |b_i - 1/n|``: 0 when the model is the one that the responses were sampled from."""
    return (baseline_PG - 1.0 / baseline_PG.shape[-1]).abs().max().item()
