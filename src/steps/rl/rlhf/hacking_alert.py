"""Alerts that the policy games its judge: when each is raised, and what the manifest advises.

The words are those of the manifest's strategies (a test holds them equal): a recipe runs where the
manifest may not be.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

LENGTH_FACTOR = 2.0
KL_NATS = 0.3
"""Nats a token: a policy that far away has forgotten what it was."""
SPREAD = 0.05
"""Of rewards within a group, on the scale of scores from 1 to 5."""

Metrics = Mapping[str, float]


@dataclass(frozen=True)
class Alert:
    """An alert: ``hacking/sign_<name>`` is 1 in a step whose metrics raise it.

    ``when`` and ``then`` are the symptom and the advice of the manifest's strategy.
    """

    name: str
    is_raised: Callable[[Metrics], bool]
    when: str
    then: str

    def __str__(self) -> str:
        return f"{self.when}: {self.then}"


def _changed_length(metrics: Metrics) -> bool:
    before, now = metrics["start_tokens"], metrics["mean_gen_tokens_per_sample"]
    return not before / LENGTH_FACTOR <= now <= before * LENGTH_FACTOR


ALERTS = (
    Alert(
        "saturated",
        lambda metrics: metrics.get("hacking/reward_std_in_group", 1.0) < SPREAD,
        when="Reward model saturates / reward hacking is observed",
        then="Increase KL penalty (loss_fn.reference_policy_kl_penalty, x3 to x10), lower the "
        "learning rate (policy.megatron_cfg.optimizer.lr), or add reward clipping "
        "(grpo.reward_scaling with equal bands, grpo.advantage_clip_low and _high).",
    ),
    Alert(
        "length",
        _changed_length,
        when="Answers grow or shrink far beyond those of the start",
        then="The judge may like length rather than worth. Read samples/ in the run's folder, "
        "price length with group_answer_length_penalty_coeff or grpo.reward_shaping, and "
        "measure with eval/arena under another judge.",
    ),
    Alert(
        "kl",
        lambda metrics: metrics.get("hacking/kl_to_start", 0.0) > KL_NATS,
        when="The policy moves far from the reference",
        then="Increase loss_fn.reference_policy_kl_penalty, lower "
        "policy.megatron_cfg.optimizer.lr, or stop earlier (grpo.max_num_steps).",
    ),
    Alert(
        "unreadable",
        lambda metrics: metrics.get("judge/parse_failure_rate", 0.0) > 0.1,
        when="The judge's answers cannot be read",
        then="A model that was not trained to judge needs judge.form=instruct, room for its "
        "reasoning (genrm_responses_create_params.max_output_tokens), and, where the server "
        "can, judge.response_format.",
    ),
    Alert(
        "flat",
        lambda metrics: metrics.get("hacking/zero_std_groups", 0.0) > 0.5,
        when="Most groups have no difference in reward",
        then="They teach nothing. Raise policy.generation.temperature or "
        "grpo.num_generations_per_prompt, or take a judge that tells these answers apart (its "
        "card says how well).",
    ),
)


def find_alerts(metrics: Metrics) -> list[Alert]:
    """The alerts that the metrics of a step raise."""
    return [alert for alert in ALERTS if alert.is_raised(metrics)]
