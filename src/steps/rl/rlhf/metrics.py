"""The metrics of a step that do not come out of the loss, and how a step is reported."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from operator import itemgetter

from nemotron_style.runtime.step.context import StepContext
from nemotron_style.steps.blocks.loss.advantage import Baseline
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
    drawn = [sample for rollout in rollouts for sample in rollout.samples]
    return {
        **reward_metrics(shaped.rewards_B, baseline, shaped.groups, valid_B=shaped.valid_B),
        **length_metrics(
            [len(sample.tokens) for sample in drawn],
            [len(sample.prompt_ids) for sample in samples],
            [sample.truncated for sample in drawn],
        ),
        **_advantage_metrics(samples),
        "num_mask_sample_filtered": float((~shaped.mask_B).sum()),
        "num_unknown_id_samples": float(sum(not sample.known for sample in drawn)),
    }


def step_seconds(started: float, sampled: float, rewarded: float) -> dict[str, float]:
    """Where the time of a step went, from clock times; it ends now."""
    return {
        "timing/train/generation": sampled - started,
        "timing/train/judge": rewarded - sampled,
        "timing/train/policy_training": time.monotonic() - rewarded,
    }


def report_step(
    ctx: StepContext,
    step: int,
    metrics: dict[str, float],
    rows: Sequence[Row],
    *,
    shown_alerts: list[str],
) -> None:
    """Log the metrics and the table of samples; show alerts that were not shown before."""
    alerts = find_alerts(metrics)
    for alert in alerts:
        if alert.name not in shown_alerts:
            shown_alerts.append(alert.name)
            ctx.say(f"step {step}: {alert}")
    ctx.metrics.log(step, **metrics, **{f"hacking/sign_{alert.name}": 1.0 for alert in alerts})
    if ctx.is_first:
        write_samples(ctx.run_dir, step, rows)
    ctx.say(f"step {step}: {describe_samples(rows, text='answer')}")


def report_validation(
    ctx: StepContext, step: int, metrics: dict[str, float], rows: Sequence[Row]
) -> None:
    """Log the metrics of a validation and write the answers that gained most and least."""
    ctx.metrics.log(step, **metrics)
    if ctx.is_first:
        write_validation(ctx.run_dir, step, rows, gain=itemgetter("margin"))
    ctx.say(f"step {step}: " + ", ".join(f"{k} {v:.3f}" for k, v in metrics.items()))


def progress_figures(metrics: dict[str, float]) -> dict[str, float]:
    """What the line of progress shows; a step in which nothing was judged has no reward."""
    reward = {"reward": metrics["reward"]} if "reward" in metrics else {}
    return reward | {
        "kl": metrics.get("hacking/kl_to_start", 0.0),
        "tokens": metrics["mean_gen_tokens_per_sample"],
    }


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
