"""The metrics of a step: rewards, lengths, how far the policy moved, where the time went."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import fmean, pstdev
from typing import Any

import torch
from torch import nn

from nemotron_style.runtime.step.context import StepContext
from nemotron_style.steps.blocks.model.prefix_packing import Group
from nemotron_style.steps.blocks.training.microbatch import score, sum_over_ranks
from nemotron_style.steps.blocks.training.microbatch_plan import plan_microbatches
from nemotron_style.steps.blocks.training.sample_table import Row, describe_samples, write_samples
from nemotron_style.steps.blocks.training.start_policy import StartPolicy
from nemotron_style.steps.rs.actor.best_of_n import Choice
from nemotron_style.steps.rs.actor.rollout import Rollout


def rollout_metrics(rollouts: Sequence[Rollout], choices: Sequence[Choice]) -> dict[str, float]:
    """Rewards of all and of kept, lengths, and what could not be scored or was tied."""
    responses = [one for rollout in rollouts for one in rollout.responses]
    scores = [one for rollout in rollouts for one in rollout.scores if one]
    rewards = [one.score for one in scores]
    kept = [
        (rollout.rewards[index] or 0.0, len(rollout.responses[index].tokens))
        for rollout, choice in zip(rollouts, choices, strict=True)
        for index in choice.kept
    ]
    attributes = {
        f"attribute_{name}_mean": mean([one.attributes[name] for one in scores])
        for name in (scores[0].attributes if scores else ())
    }
    return {
        "reward_mean": mean(rewards),
        "reward_std": pstdev(rewards) if rewards else math.nan,
        "reward_min": min(rewards, default=math.nan),
        "reward_max": max(rewards, default=math.nan),
        "reward_kept_mean": mean([reward for reward, _ in kept]),
        "response_tokens_mean": mean([len(one.tokens) for one in responses]),
        "kept_tokens_mean": mean([tokens for _, tokens in kept]),
        "finished_share": mean([one.finished for one in responses]),
        "unusable_samples": sum(one.text is None for one in responses),
        "tied_groups": sum(choice.tied for choice in choices),
        **attributes,
    }


def measure_kl(
    model: nn.Module,
    start: StartPolicy,
    groups: Sequence[Group],
    *,
    max_responses: int,
    temperature: float = 1.0,
) -> float:
    """KL in nats of a response from the policy to the model it started from, estimated.

    ``groups`` are samples of the policy. A token's term is ``exp(d) - 1 - d`` with ``d = log
    p_start - log p`` (Schulman's k3): its mean under the policy is the KL of the next token, it is
    never negative, and it is 0 where the two are the same. A response has the sum of its tokens.
    """
    plan = plan_microbatches(groups, max_responses=max_responses)
    packed = [batch.pack(groups) for batch in plan]
    policy = score(model, packed, temperature=temperature)
    with start.use() as frozen:
        reference = score(frozen, packed, temperature=temperature)
    # Log-probs are 0 where there is no token, so padding adds exp(0) - 1 - 0 = 0.
    gaps = [(old.double() - new.double()) for new, old in zip(policy, reference, strict=True)]
    zero = torch.zeros((), dtype=torch.float64)
    total = sum_over_ranks([(gap.expm1() - gap).sum() for gap in gaps], zero)
    return float(total) / sum(len(group.responses_ids) for group in groups)


def step_seconds(rollouts: Sequence[Rollout], seconds: Mapping[str, float]) -> dict[str, float]:
    """Where the time of a step went, and how many tokens it sampled in a second of it."""
    tokens = sum(len(one.tokens) for rollout in rollouts for one in rollout.responses)
    return {**seconds, "drawn_tokens_per_second": tokens / sum(seconds.values())}


def report_step(
    ctx: StepContext, step: int, steps: int, metrics: Mapping[str, float], *, rows: Sequence[Row]
) -> None:
    """Log the metrics, write the table of samples, and show how far the run is."""
    ctx.metrics.log(step, **metrics)
    if ctx.is_first:
        write_samples(ctx.run_dir, step, rows)
    ctx.say(f"step {step}: {describe_samples(rows, text='response')}")
    ctx.progress(
        step,
        steps,
        reward=metrics["reward_mean"],
        kept=metrics["reward_kept_mean"],
        kl=metrics["kl_to_start"],
    )


def mean(values: Sequence[Any]) -> float:
    """The mean, NaN without a value."""
    return fmean(values) if values else math.nan
