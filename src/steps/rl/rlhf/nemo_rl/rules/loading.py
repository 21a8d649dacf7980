"""Keys that NeMo-RL reads without a default, and that no type of it asks for."""

from __future__ import annotations

from collections.abc import Iterator

from nemotron_style.runtime.errors import Problem
from nemotron_style.steps.rl.rlhf.nemo_rl.draft import show
from nemotron_style.steps.rl.rlhf.nemo_rl.rules.rule import Effect, rule
from nemotron_style.steps.rl.rlhf.nemo_rl.rules.view import View
from nemotron_style.steps.rl.rlhf.nemo_rl.version import Version

MEGATRON = "policy.megatron_cfg"
EXPERTS = (
    "moe_router_dtype",
    "moe_router_load_balancing_type",
    "moe_router_bias_update_rate",
    "moe_permute_fusion",
)
ALWAYS = (
    "policy.sequence_packing.enabled",
    "policy.dynamic_batching.enabled",
    "checkpointing.keep_top_k",
    "checkpointing.metric_name",
    "checkpointing.higher_is_better",
    "checkpointing.save_optimizer",
)


def missing(job: View, *keys: str, write: str = "") -> Iterator[Problem]:
    """A problem for each key that is not there; null counts as there."""
    for key in keys:
        if not job.has(key):
            what = f"is read without a default by NeMo-RL {job.version}"
            yield Problem(key=key, what=what, got="nothing", fix=write and f"write {write}")


@rule(Effect.STOPS, "KeyError when the key is read")
def always_read(job: View) -> Iterator[Problem]:
    """Packing, dynamic batches and checkpoints are configured whole."""
    yield from missing(job, *ALWAYS)


@rule(Effect.STOPS, "KeyError / ValueError when the configuration is read")
def train_data(job: View) -> Iterator[Problem]:
    """`data.train` is there."""
    yield from missing(job, "data.train")


@rule(Effect.STOPS, "KeyError in `setup`", before=Version.V0_7_0)
def vllm_arguments(job: View) -> Iterator[Problem]:
    """`policy.generation.vllm_kwargs` is there, empty if nothing else."""
    if job.get("policy.generation.backend", "vllm") == "vllm":
        yield from missing(job, "policy.generation.vllm_kwargs", write="vllm_kwargs: {}")


@rule(Effect.STOPS, "KeyError in the set-up of Megatron")
def offloaded_optimizer(job: View) -> Iterator[Problem]:
    """With Megatron, `policy.offload_optimizer_for_logprob` is there."""
    if job.megatron:
        yield from missing(job, "policy.offload_optimizer_for_logprob", write="false")


@rule(Effect.STOPS, "KeyError in the set-up of Megatron (v0.6.0: when weights are converted)")
def fusion(job: View) -> Iterator[Problem]:
    """With Megatron, `gradient_accumulation_fusion` is there."""
    if job.megatron:
        yield from missing(job, f"{MEGATRON}.gradient_accumulation_fusion", write="false")


@rule(Effect.STOPS, "KeyError in the set-up of Megatron", since=Version.V0_7_0)
def squared_relu(job: View) -> Iterator[Problem]:
    """With Megatron, `use_fused_weighted_squared_relu` is there."""
    if job.megatron:
        yield from missing(job, f"{MEGATRON}.use_fused_weighted_squared_relu", write="false")


@rule(Effect.STOPS, "KeyError in the set-up of Megatron, for models without experts too")
def experts(job: View) -> Iterator[Problem]:
    """With Megatron, the router of experts is configured."""
    if job.megatron:
        yield from missing(job, *(f"{MEGATRON}.{name}" for name in EXPERTS))


@rule(Effect.STOPS, "KeyError when training starts", before=Version.HEAD)
def filtering(job: View) -> Iterator[Problem]:
    """`grpo.overlong_filtering` and `grpo.batch_multiplier` are there."""
    yield from missing(job, "grpo.overlong_filtering", write="false")
    yield from missing(job, "grpo.batch_multiplier", write="1")


@rule(Effect.STOPS, "KeyError: 'draft' in the script")
def draft(job: View) -> Iterator[Problem]:
    """Without NeMo-Gym, `policy.draft.enabled` is there."""
    if not job.gym:
        yield from missing(job, "policy.draft.enabled", write="false")


@rule(Effect.STOPS, "AttributeError or TypeError for None after all workers are up")
def asynchronous(job: View) -> Iterator[Problem]:
    """`grpo.async_grpo` is not null."""
    key = "grpo.async_grpo"
    if job.has(key) and job.get(key) is None:
        yield Problem(
            key=key,
            what="null is read as a table",
            got="null",
            fix="write async_grpo: {enabled: false}",
        )


@rule(Effect.STOPS, "`Field required` when the configuration is read", since=Version.HEAD)
def validation_sampling(job: View) -> Iterator[Problem]:
    """From head on, validation has sampling parameters of its own."""
    for name in ("temperature", "top_p", "top_k"):
        key = f"policy.generation.val_{name}"
        yield from missing(job, key, write=show(job.get(f"policy.generation.{name}")))
