"""Megatron's own settings: optimizer, experts, attention, recomputation, learning rate."""

from __future__ import annotations

from collections.abc import Iterator

from nemotron_style.runtime.errors import Problem
from nemotron_style.steps.rl.rlhf.nemo_rl.draft import show
from nemotron_style.steps.rl.rlhf.nemo_rl.rules.rule import Effect, rule
from nemotron_style.steps.rl.rlhf.nemo_rl.rules.view import View
from nemotron_style.steps.rl.rlhf.nemo_rl.version import Version

SECTION = "policy.megatron_cfg"
OPTIMIZER = f"{SECTION}.optimizer"
ATTENTION = ("flash", "fused", "unfused", "local", "auto")


@rule(Effect.STOPS, "AssertionError in the set-up of Megatron")
def optimizer_precision(job: View) -> Iterator[Problem]:
    """The optimizer's `bf16` and `fp16` fit `policy.precision`."""
    if not job.megatron:
        return
    aware = job.flag(f"{OPTIMIZER}.use_precision_aware_optimizer")
    halves = {name: job.flag(f"{OPTIMIZER}.{name}") for name in ("bf16", "fp16")}
    precision = job.text("policy.precision")
    wanted = {"bfloat16": "bf16", "float16": "fp16"}.get(precision)
    if wanted and aware and not halves[wanted]:
        yield Problem(
            key=f"{OPTIMIZER}.{wanted}",
            what=f"policy.precision is {precision}, and the optimizer is precision aware",
            got="false",
            allowed="true",
        )
    for name in halves:
        if precision == "float32" and halves[name]:
            what = "policy.precision is float32"
            yield Problem(key=f"{OPTIMIZER}.{name}", what=what, got="true", allowed="false")


@rule(Effect.STOPS, "AssertionError in the set-up of Megatron", before=Version.HEAD)
def whole_offload(job: View) -> Iterator[Problem]:
    """Up to v0.7.0 an optimizer on the CPU is there whole."""
    fraction = job.get(f"{OPTIMIZER}.optimizer_offload_fraction")
    if job.megatron and job.flag(f"{OPTIMIZER}.optimizer_cpu_offload") and fraction != 1:
        yield Problem(
            key=f"{OPTIMIZER}.optimizer_offload_fraction",
            what=f"with optimizer_cpu_offload, NeMo-RL {job.version} moves all or nothing",
            got=show(fraction),
            allowed="1.0",
        )


@rule(Effect.STOPS, "ValueError in the set-up of Megatron", since=Version.HEAD)
def offload(job: View) -> Iterator[Problem]:
    """An optimizer on the CPU has a fraction, is distributed, and is adam or sgd."""
    fraction = job.number(f"{OPTIMIZER}.optimizer_offload_fraction", 0)
    if not job.megatron:
        return
    if not job.flag(f"{OPTIMIZER}.optimizer_cpu_offload"):
        if job.flag(f"{OPTIMIZER}.overlap_cpu_optimizer_d2h_h2d"):
            yield Problem(
                key=f"{OPTIMIZER}.overlap_cpu_optimizer_d2h_h2d",
                what="needs optimizer_cpu_offload",
                got="true",
                allowed="false",
            )
        return
    name, distributed = job.get(f"{OPTIMIZER}.optimizer"), "use_distributed_optimizer"
    for key, is_wrong, got, allowed in (
        ("optimizer_offload_fraction", not 0 < fraction <= 1, fraction, "above 0, up to 1"),
        (distributed, not job.flag(f"{OPTIMIZER}.{distributed}"), "false", "true"),
        ("optimizer", name not in ("adam", "sgd"), name, "adam or sgd"),
    ):
        if is_wrong:
            what = "does not go with optimizer_cpu_offload"
            yield Problem(key=f"{OPTIMIZER}.{key}", what=what, got=show(got), allowed=allowed)


@rule(Effect.STOPS, "AssertionError in the set-up of Megatron", before=Version.V0_7_0)
def auxiliary_loss(job: View) -> Iterator[Problem]:
    """At v0.6.0 no auxiliary loss balances the experts."""
    balancing = str(job.get(f"{SECTION}.moe_router_load_balancing_type"))
    coefficient = job.number(f"{SECTION}.moe_aux_loss_coeff", 0)
    if job.megatron and "aux_loss" in balancing and coefficient != 0:
        yield Problem(
            key=f"{SECTION}.moe_aux_loss_coeff",
            what=f"v0.6.0 cannot scale the loss of {balancing}",
            got=show(coefficient),
            allowed="0",
            fix="set moe_router_load_balancing_type=none",
        )


@rule(Effect.STOPS, "ValueError in the set-up of Megatron")
def attention(job: View) -> Iterator[Problem]:
    """`attention_backend` is one that Megatron-Core has."""
    key = f"{SECTION}.attention_backend"
    value = job.get(key)
    if job.megatron and value is not None and value not in ATTENTION:
        yield Problem(key=key, what="is unknown", got=show(value), allowed=", ".join(ATTENTION))


@rule(Effect.STOPS, "ValueError in the set-up of Megatron", since=Version.V0_7_0)
def recomputation(job: View) -> Iterator[Problem]:
    """`recompute_granularity` is full or selective."""
    key = f"{SECTION}.recompute_granularity"
    value = job.get(key, "full")
    is_on = job.megatron and job.flag(f"{SECTION}.activation_checkpointing")
    if is_on and value not in ("full", "selective"):
        yield Problem(key=key, what="is unknown", got=show(value), allowed="full or selective")


@rule(Effect.SILENT, "recompute_modules is not read", since=Version.V0_7_0, advice=True)
def recomputed_modules(job: View) -> Iterator[Problem]:
    """`recompute_modules` is read with granularity selective only."""
    modules = job.get(f"{SECTION}.recompute_modules")
    granularity = job.get(f"{SECTION}.recompute_granularity", "full")
    if job.megatron and modules and granularity == "full":
        yield Problem(
            key=f"{SECTION}.recompute_modules",
            what="is read with recompute_granularity selective only",
            got=f"{', '.join(map(str, modules))} with granularity full",
        )


@rule(Effect.STOPS, "ValueError in the set-up of Megatron", since=Version.HEAD)
def overrides(job: View) -> Iterator[Problem]:
    """`model_overrides` repeats no key of `megatron_cfg`."""
    twice = sorted(set(job.table(f"{SECTION}.model_overrides")) & set(job.table(SECTION)))
    for name in twice if job.megatron else ():
        yield Problem(
            key=f"{SECTION}.model_overrides.{name}",
            what="is a setting of NeMo-RL itself",
            fix=f"set {SECTION}.{name}",
        )


@rule(Effect.STOPS, "AssertionError in the set-up of Megatron")
def chunked_logprobs(job: View) -> Iterator[Problem]:
    """`policy.logprob_chunk_size` needs Megatron's `defer_fp32_logits`."""
    size = job.number("policy.logprob_chunk_size", 0)
    if job.megatron and size > 0 and not job.flag(f"{SECTION}.defer_fp32_logits"):
        yield Problem(
            key="policy.logprob_chunk_size",
            what=f"needs {SECTION}.defer_fp32_logits",
            got=f"{size} with false",
            fix=f"set {SECTION}.defer_fp32_logits=true, or the size to null",
        )


@rule(Effect.SILENT, "Megatron-Bridge warns and cuts the warm-up to the decay less 1", advice=True)
def warm_up(job: View) -> Iterator[Problem]:
    """The learning rate decays after it has warmed up."""
    warm_up = job.number(f"{SECTION}.scheduler.lr_warmup_iters")
    decay = job.number(f"{SECTION}.scheduler.lr_decay_iters")
    if job.megatron and warm_up >= decay:
        yield Problem(
            key=f"{SECTION}.scheduler.lr_warmup_iters",
            what=f"{warm_up} is cut to {decay - 1}, since lr_decay_iters is {decay}",
        )


@rule(Effect.STOPS, "ValueError `offload_modules must be a non-empty list`", since=Version.HEAD)
def offloaded_modules(job: View) -> Iterator[Problem]:
    """Fine-grained activation offloading names its modules."""
    is_on = job.megatron and job.flag(f"{SECTION}.fine_grained_activation_offloading")
    if is_on and not job.get(f"{SECTION}.offload_modules"):
        yield Problem(
            key=f"{SECTION}.offload_modules",
            what="fine_grained_activation_offloading needs the names of the modules",
            got=show(job.get(f"{SECTION}.offload_modules")),
            allowed="a list with at least one name",
        )
