"""Checkpoints: when they are saved, which of them is best, and what a run goes on from."""

from __future__ import annotations

import re
from collections.abc import Iterator

from nemotron_style.runtime.errors import Problem
from nemotron_style.steps.rl.rlhf.nemo_rl.draft import show
from nemotron_style.steps.rl.rlhf.nemo_rl.rules.rule import Effect, rule
from nemotron_style.steps.rl.rlhf.nemo_rl.rules.view import View

SECTION = "checkpointing"
METRICS_WITHOUT_GYM = ("accuracy", "avg_length", "pass_k")
PLAIN_METRICS = (
    *METRICS_WITHOUT_GYM,
    "natural_termination_rate",
    "truncation_rate",
    "mean_gen_tokens_per_sample",
)
"""Metrics of validation without a slash in their name."""


def saves(job: View) -> bool:
    return job.flag(f"{SECTION}.enabled", default=True)


@rule(Effect.STOPS, "ZeroDivisionError at the end of the first step")
def save_period(job: View) -> Iterator[Problem]:
    """`save_period` is at least 1."""
    key = f"{SECTION}.save_period"
    if job.number(key) < 1:
        yield Problem(
            key=key,
            what="divides the number of each step",
            got=show(job.number(key)),
            allowed="1 or more",
            fix="to save at the end only, take a number above grpo.max_num_steps",
        )


@rule(Effect.STOPS, "AssertionError at the first save (from v0.8.0 on at the start, RL#1261)")
def metric_prefix(job: View) -> Iterator[Problem]:
    """`metric_name` begins with `val:` or `train:`."""
    key = f"{SECTION}.metric_name"
    name = job.get(key)
    if saves(job) and name is not None and not str(name).startswith(("val:", "train:")):
        yield Problem(
            key=key,
            what="does not say which metrics it is of",
            got=show(name),
            allowed="val:NAME, train:NAME, or null",
            fix=f"set {key}=val:{name}",
        )


@rule(Effect.STOPS, "ValueError `Metric X not found in val metrics` at the first save")
def metric_exists(job: View) -> Iterator[Problem]:
    """A metric of validation is one that NeMo-RL logs."""
    key = f"{SECTION}.metric_name"
    prefix, _, name = str(job.get(key)).partition(":")
    if not (saves(job) and prefix == "val" and name):
        return
    known = name in PLAIN_METRICS or "/" in name if job.gym else name in METRICS_WITHOUT_GYM
    if not known:
        more = "val:total_reward/mean, val:accuracy, or a metric of an agent"
        yield Problem(
            key=key,
            what="is no metric of validation",
            got=show(job.get(key)),
            allowed=more if job.gym else ", ".join(f"val:{one}" for one in METRICS_WITHOUT_GYM),
        )


@rule(Effect.SILENT, "a warning, and the checkpoint is ranked last", advice=True)
def metric_at_saves(job: View) -> Iterator[Problem]:
    """The steps that are saved are steps that are validated."""
    key = f"{SECTION}.save_period"
    save, validate = job.number(key), job.number("grpo.val_period", 0)
    if not saves(job) or not str(job.get(f"{SECTION}.metric_name")).startswith("val:"):
        return
    if not job.validates:
        metric = job.get(f"{SECTION}.metric_name")
        what = f"{metric} ranks checkpoints, and nothing is validated: the newest is the best"
        yield Problem(key=f"{SECTION}.metric_name", what=what)
    elif validate and save % validate and save <= job.number("grpo.max_num_steps", save):
        yield Problem(
            key=key,
            what=f"{save} is no multiple of grpo.val_period {validate}: the checkpoint of step"
            f" {save} has no {job.get(f'{SECTION}.metric_name')} and is ranked last",
        )


@rule(Effect.SILENT, "the best and the newest are kept", advice=True)
def kept(job: View) -> Iterator[Problem]:
    """`keep_top_k` is more than 1, since the newest is kept beside the best."""
    if saves(job) and job.get(f"{SECTION}.keep_top_k") == 1:
        what = "1 keeps two checkpoints: the best and the newest"
        yield Problem(key=f"{SECTION}.keep_top_k", what=what)


@rule(Effect.STOPS, "ValueError when training starts")
def save_by(job: View) -> Iterator[Problem]:
    """`checkpoint_must_save_by` is DD:HH:MM:SS."""
    key = f"{SECTION}.checkpoint_must_save_by"
    value = job.get(key)
    if value is not None and not re.fullmatch(r"\d+:\d+:\d+:\d+", str(value)):
        fix = f'quote it: {key}="00:03:45:00"'
        what = "is no time"
        yield Problem(key=key, what=what, got=show(value), allowed="DD:HH:MM:SS", fix=fix)


@rule(Effect.SILENT, "the position in the old file is applied to the new one: rows are left out")
def resumes_same_rows(job: View) -> Iterator[Problem]:
    """A run goes on with the files, the prompts a step, and the seed that it began with."""
    resumed = job.facts.resumes
    if resumed is None:
        return
    before = View(resumed.values, job.facts)
    for key in (
        "data.train.data_path",
        "data.shuffle",
        "grpo.num_prompts_per_step",
        "grpo.seed",
    ):
        old, new = before.raw(key), job.raw(key)
        if before.has(key) and old != new and "${" not in f"{old}{new}":
            yield Problem(
                key=key,
                what=f"step_{resumed.step} of {job.raw(f'{SECTION}.checkpoint_dir')} was made"
                " with another value, and the run would go on from there",
                got=show(new),
                allowed=show(old),
                fix=f"keep it, or give a new {SECTION}.checkpoint_dir",
            )


@rule(Effect.STOPS, "weights of another shape are loaded into the model")
def resumes_same_model(job: View) -> Iterator[Problem]:
    """A run goes on with the model that it began with."""
    resumed = job.facts.resumes
    old = View(resumed.values, job.facts).raw("policy.model_name") if resumed else None
    new = job.raw("policy.model_name")
    if resumed and old is not None and old != new and "${" not in f"{old}{new}":
        yield Problem(
            key="policy.model_name",
            what=f"step_{resumed.step} was trained from another model, and it would win",
            got=show(new),
            allowed=show(old),
            fix=f"give a new {SECTION}.checkpoint_dir",
        )


@rule(Effect.SILENT, "the highest step_N of the folder is resumed, whatever it holds", advice=True)
def resumes(job: View) -> Iterator[Problem]:
    """The folder of checkpoints is empty, or the run is meant to go on."""
    resumed = job.facts.resumes
    if resumed is not None:
        most = job.get("grpo.max_num_steps")
        what = f"holds step_{resumed.step}: the run goes on from there, up to {most}"
        yield Problem(key=f"{SECTION}.checkpoint_dir", what=what)
