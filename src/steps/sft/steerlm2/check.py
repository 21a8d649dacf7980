"""What must hold before the first update: the sampler of the data, and its numbers."""

from __future__ import annotations

import math

from nemotron_style.runtime.errors import InputError, Problem, raise_all
from nemotron_style.runtime.step.context import StepContext
from nemotron_style.steps.sft.steerlm2.config import Config
from nemotron_style.steps.sft.steerlm2.metrics import GroupMetrics

OUTLIER = 10
"""How many times ``sampler_tolerance`` a single response may differ by."""


def check_sampler(config: Config, ctx: StepContext, parent: str) -> None:
    """Refuse data whose record names another model than ``parent`` as its sampler.

    Data without such a record, brought in from outside, gets a log line, and so has a run that goes
    on from an adapter, with which the sampler was another model on disk: :func:`check_start` checks
    the numbers themselves.
    """
    if ctx.optional_input("adapter"):
        ctx.say("the start is a model with an adapter; the numbers of the data are checked")
        return
    problems = []
    for slot in ("data", "validation"):
        sampler = ctx.input(slot).facts.get("sampler_digest")
        if sampler is None:
            ctx.say(f"{slot}: no record of the model it was sampled from; its numbers are checked")
        elif sampler != parent:
            problems.append(
                Problem(
                    where=ctx.input(slot).ref,
                    key=slot,
                    what="the responses were sampled from another model than the one to train",
                    got=f"weights {sampler}",
                    allowed=f"weights {parent}",
                    fix="sample again with data/steerlm2, or set "
                    "model.steerlm2.allow_other_sampler=true",
                )
            )
    if config.model.steerlm2.allow_other_sampler:
        for problem in problems:
            ctx.say(f"warning: {problem}")
        return
    raise_all(InputError, problems)


def check_start(config: Config, metrics: GroupMetrics, where: str) -> None:
    """Refuse to update a model that does not score the responses as their sampler did.

    There every baseline is ``1/n``, up to the noise of the arithmetic. That noise is bounded for
    95% of the responses, and loosely for each of them, so that neither a rare rounding nor a
    long response refuses a sound run. A sampler that is known to be another one is exempt.
    """
    tolerance = config.sampler_tolerance
    usual, largest = metrics.token_noise, metrics.token_noise_max
    if config.model.steerlm2.allow_other_sampler or not math.isfinite(metrics.loss):
        return  # an update that is not finite is refused as such
    if usual <= tolerance and largest <= OUTLIER * tolerance:
        return
    raise InputError(
        Problem(
            where=where,
            key="log(Q(y|a,x))",
            what="the model does not give the responses the log-probabilities they were scored "
            "with: before the first step they may differ by rounding alone",
            got=f"a difference of {usual:.3g} nats for each square root of a token in 95% of the "
            f"responses, {largest:.3g} in the worst; max |b - 1/n| = {metrics.sampler_gap:.3g}, "
            f"mean difference of log Q {metrics.mean_drift:+.4g} nats",
            allowed=f"{tolerance:g} in 95% (model.steerlm2.sampler_tolerance), "
            f"{OUTLIER * tolerance:g} in each",
            fix="compare what scored the data with what trains: tokenizer, "
            "model.data.chat_prompt_tokens, the loss mask, truncation, trainer.precision",
        )
    )


def warn_if_few(config: Config, ctx: StepContext, metrics: GroupMetrics) -> None:
    """Warn when few responses of a group carry its weight."""
    floor = config.model.steerlm2.effective_sample_floor
    if metrics.effective_sample_size < floor:
        ctx.say(
            f"warning: mean effective sample size {metrics.effective_sample_size:.2f} is below "
            f"{floor:g} (model.steerlm2.effective_sample_floor): few responses of a group count. "
            "Sample more responses, or labels nearer to what the model does"
        )
