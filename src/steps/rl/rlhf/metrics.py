"""The metrics of a step that do not come out of the loss, and how a step is reported."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from operator import itemgetter

import torch

from nemotron_style.runtime.step.context import StepContext
from nemotron_style.steps.blocks.loss.advantage import Baseline
from nemotron_style.steps.blocks.loss.kl import estimate_kl
from nemotron_style.steps.blocks.loss.rollout_metrics import length_metrics, reward_metrics
from nemotron_style.steps.blocks.training.sample_table import (
    Row,
    describe_samples,
    write_samples,
    write_validation,
)
from nemotron_style.steps.rl.rlhf.advantages import ShapedRewards
from nemotron_style.steps.rl.rlhf.hacking_alert import find_alerts
from nemotron_style.steps.rl.rlhf.rollout import Rollout
from nemotron_style.steps.rl.rlhf.train_sample import TrainSample


def rollout_metrics(
    rollouts: Sequence[Rollout],
    shaped: ShapedRewards,
    baseline: Baseline,
    samples: Sequence[TrainSample],
) -> dict[str, float]:
    """Rewards and lengths of the samples of a step, and their advantages over tokens."""
    all_samples = [sample for rollout in rollouts for sample in rollout.samples]
    return {
        **reward_metrics(shaped.rewards_B, baseline, shaped.groups, valid_B=shaped.valid_B),
        **length_metrics(
            [len(sample.tokens) for sample in all_samples],
            [len(sample.prompt_ids) for sample in samples],
            [sample.truncated for sample in all_samples],
        ),
        **_advantage_metrics(samples),
        "num_mask_sample_filtered": float((~shaped.mask_B).sum()),
        "num_unknown_id_samples": float(sum(not sample.known for sample in all_samples)),
    }


def measure_kl(samples: Sequence[TrainSample]) -> dict[str, float]:
    """KL of a token from the policy that sampled to the reference (k3, nats), where it is known."""
    reference = [one.reference_T for one in samples if one.reference_T is not None]
    if not reference:
        return {}
    kl_T = estimate_kl(torch.cat([one.generation_T for one in samples]), torch.cat(reference))
    return {"hacking/kl_to_start": float(kl_T.double().mean())}


def report_step(
    ctx: StepContext,
    step: int,
    steps: int,
    metrics: Mapping[str, float],
    *,
    rows: Sequence[Row],
    shown_alerts: list[str],
) -> None:
    """Log the metrics, write the table of samples, and show how far the run is.

    Alerts that were not shown before are shown, and added to ``shown_alerts``.
    """
    alerts = find_alerts(metrics)
    for alert in alerts:
        if alert.name not in shown_alerts:
            shown_alerts.append(alert.name)
            ctx.say(f"step {step}: {alert}")
    ctx.metrics.log(step, **metrics, **{f"hacking/sign_{alert.name}": 1.0 for alert in alerts})
    if ctx.is_first:
        write_samples(ctx.run_dir, step, rows)
    ctx.say(f"step {step}: {describe_samples(rows, text='answer')}")
    # a step in which nothing was judged has no reward
    reward = {"reward": metrics["reward"]} if "reward" in metrics else {}
    kl, tokens = metrics.get("hacking/kl_to_start", 0.0), metrics["mean_gen_tokens_per_sample"]
    ctx.progress(step, steps, **reward, kl=kl, tokens=tokens)


def report_validation(
    ctx: StepContext, step: int, metrics: dict[str, float], rows: Sequence[Row]
) -> None:
    """Log the metrics of a validation and write the answers that gained most and least."""
    ctx.metrics.log(step, **metrics)
    if ctx.is_first:
        write_validation(ctx.run_dir, step, rows, gain=itemgetter("margin"))
    ctx.say(f"step {step}: " + ", ".join(f"{k} {v:.3f}" for k, v in metrics.items()))


def _advantage_metrics(samples: Sequence[TrainSample]) -> dict[str, float]:
    """``advantages/mean``, ``max`` and ``min`` over the tokens that are trained on."""
    kept = [one for one in samples if one.mask]
    if not kept:
        return {}
    tokens = sum(len(one.tokens) for one in kept)
    return {
        "advantages/mean": math.fsum(one.advantage * len(one.tokens) for one in kept) / tokens,
        "advantages/max": max(one.advantage for one in kept),
        "advantages/min": min(one.advantage for one in kept),
    }
