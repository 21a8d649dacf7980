"""Metrics of a model from the log-probabilities that it gives the responses of a batch."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from torch import Tensor

from nemotron_style.steps.blocks.loss import steerlm2
from nemotron_style.steps.sft.steerlm2.batch import Batch


@dataclass(frozen=True)
class GroupMetrics:
    """Means over groups.

    ``distance`` is KL(w || b). ``mean_drift`` is the mean of ``log Qtheta - log Q'`` over
    responses in nats: the loss compares the responses of a group with each other only, so nothing
    but this number shows when probability leaves all of them. ``sampler_gap`` is
    ``max |b - 1/n|``, which is 0 where the model is the one that sampled the responses.

    ``token_noise`` is what 95% of the responses stay below, ``token_noise_max`` the largest, of
    ``|d - mean of d in the group| / sqrt(T)`` with ``d = log Qtheta - log Q'`` and T tokens: where
    both are the same model, this is the noise of one token, however long responses are.
    """

    loss: float
    distance: float
    effective_sample_size: float
    mean_drift: float
    sampler_gap: float
    token_noise: float = 0.0  # states of earlier versions have neither
    token_noise_max: float = 0.0

    def named(self, part: str) -> dict[str, float]:
        """The metrics as they are logged: ``train_loss``, ``validation_distance``, ..."""
        return {f"{part}_{name}": value for name, value in asdict(self).items()}


def compute_metrics(
    batch: Batch, log_q_theta_PG: Tensor, *, b_PG: Tensor, loss_PG: Tensor
) -> GroupMetrics:
    """The metrics of ``batch``; ``loss_PG`` is each response's ``(w - b) nll``."""
    drift_PG = log_q_theta_PG - batch.log_q_PG
    # What all responses of a group have in common cancels in the baseline. Rounding differs from
    # token to token, so its sum grows with the root of their number.
    noise_PG = (drift_PG - drift_PG.mean(-1, keepdim=True)).abs() / batch.tokens_PG.sqrt()
    return GroupMetrics(
        loss=loss_PG.sum(-1).mean().item(),
        distance=steerlm2.distance(batch.w_PG, b_PG).mean().item(),
        effective_sample_size=steerlm2.effective_sample_size(batch.w_PG).mean().item(),
        mean_drift=drift_PG.mean().item(),
        sampler_gap=steerlm2.sampler_gap(b_PG),
        token_noise=noise_PG.flatten().quantile(0.95).item(),
        token_noise_max=noise_PG.max().item(),
    )
