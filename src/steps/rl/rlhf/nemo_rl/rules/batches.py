"""Prompts, responses and micro-batches: what must divide what."""

from __future__ import annotations

from collections.abc import Iterator

from nemotron_style.runtime.errors import Problem
from nemotron_style.steps.rl.rlhf.nemo_rl.draft import show
from nemotron_style.steps.rl.rlhf.nemo_rl.rules.rule import Effect, rule
from nemotron_style.steps.rl.rlhf.nemo_rl.rules.view import View
from nemotron_style.steps.rl.rlhf.nemo_rl.version import Version

GLOBAL_BATCH = "policy.train_global_batch_size"
IGNORE_ACCURACY = "NRL_IGNORE_TP_ACCURACY_CHECK"


@rule(Effect.STOPS, "AssertionError in `setup`")
def on_policy_batch(job: View) -> Iterator[Problem]:
    """`loss_fn.force_on_policy_ratio` needs one update a step: global batch = P * N."""
    if job.flag("loss_fn.force_on_policy_ratio") and job.global_batch != job.samples:
        yield Problem(
            key=GLOBAL_BATCH,
            what="loss_fn.force_on_policy_ratio takes one update a step",
            got=show(job.global_batch),
            allowed=f"P * N = {job.prompts} * {job.generations} = {job.samples}",
            fix=f"set {GLOBAL_BATCH}={job.samples}",
        )


@rule(Effect.STOPS, "AssertionError in the first update, after all workers are up")
def samples_fill_batches(job: View) -> Iterator[Problem]:
    """P * N is a multiple of the global batch."""
    if job.flag("loss_fn.force_on_policy_ratio"):
        return  # then they are equal, or the rule above says so
    if job.samples % job.global_batch:
        yield Problem(
            key=GLOBAL_BATCH,
            what="does not divide the samples of a step",
            got=show(job.global_batch),
            allowed=f"divisors of P * N = {job.prompts} * {job.generations} = {job.samples}",
            fix=f"set {GLOBAL_BATCH}={job.samples}, or change grpo.num_prompts_per_step",
        )


@rule(Effect.STOPS, "AssertionError in the first update, after all workers are up")
def batch_fills_replicas(job: View) -> Iterator[Problem]:
    """The global batch is a multiple of the data parallel size."""
    if job.global_batch % job.data_parallel:
        yield Problem(
            key=GLOBAL_BATCH,
            what="is no multiple of the data parallel size",
            got=show(job.global_batch),
            allowed=f"multiples of DP {job.data_parallel} = {job.train_gpus} GPUs"
            f" / ({job.product})",
            fix="change grpo.num_prompts_per_step and the batch, or the number of GPUs",
        )


@rule(Effect.STOPS, "AssertionError `Data dict size ... not a multiple` in the first step")
def micro_batches_fill(job: View) -> Iterator[Problem]:
    """Without packing and dynamic batches, samples per rank are a multiple of the micro-batch."""
    if job.packs or job.flag("policy.dynamic_batching.enabled"):
        return
    shares = {"train_micro_batch_size": job.global_batch, "logprob_batch_size": job.samples}
    for name, samples in shares.items():
        size, data_parallel = job.size(f"policy.{name}"), job.data_parallel
        if samples % data_parallel == 0 and samples // data_parallel % size:
            yield Problem(
                key=f"policy.{name}",
                what="does not divide the samples of a rank",
                got=show(size),
                allowed=f"divisors of {samples} / DP {data_parallel} = {samples // data_parallel}",
                fix="change it, or set policy.sequence_packing.enabled=true",
            )


@rule(
    Effect.SILENT,
    "more than one update a step: the later ones are off-policy and the clip is active",
    advice=True,
)
def updates_of_a_step(job: View) -> Iterator[Problem]:
    """A step makes one update."""
    updates = job.samples // job.global_batch
    if job.flag("loss_fn.force_on_policy_ratio"):
        return  # then there is one, or an error
    if updates > 1 and job.samples % job.global_batch == 0:
        yield Problem(
            key=GLOBAL_BATCH,
            what=f"each step makes {updates} updates, all but the first off-policy: "
            f"P * N = {job.samples}, global batch {job.global_batch}",
        )


@rule(Effect.STOPS, "AssertionError in `setup`")
def batch_multiplier(job: View) -> Iterator[Problem]:
    """`grpo.batch_multiplier` other than 1 needs `grpo.use_dynamic_sampling`."""
    factor = job.number("grpo.batch_multiplier", 1)
    if factor != 1 and not job.flag("grpo.use_dynamic_sampling"):
        yield Problem(
            key="grpo.batch_multiplier",
            what="is for dynamic sampling only",
            got=show(factor),
            allowed="1 while grpo.use_dynamic_sampling is false",
        )


@rule(Effect.STOPS, "AssertionError in `setup`")
def prompts_of_loaders(job: View) -> Iterator[Problem]:
    """With several data loaders, P is a multiple of the prompts of each."""
    if not job.flag("data.use_multiple_dataloader"):
        return
    each = job.size("data.num_prompts_per_dataloader")
    if job.prompts % each:
        yield Problem(
            key="data.num_prompts_per_dataloader",
            what="does not divide the prompts of a step",
            got=show(each),
            allowed=f"divisors of grpo.num_prompts_per_step = {job.prompts}",
        )


@rule(Effect.STOPS, "ValueError when the policy is made: world size and PP * CP * TP")
def gpus_fill_models(job: View) -> Iterator[Problem]:
    """The GPUs of the policy are a multiple of PP * CP * TP."""
    if job.train_gpus % job.model_parallel:
        yield Problem(
            key="cluster.gpus_per_node",
            what="the policy's GPUs do not hold whole copies of it",
            got=f"{job.train_gpus} GPUs",
            allowed=f"multiples of {job.product}",
            fix="change the number of GPUs or the parallel sizes",
        )


@rule(Effect.STOPS, "RuntimeError of Megatron-Core when process groups are made")
def gpus_fill_experts(job: View) -> Iterator[Problem]:
    """With Megatron, the GPUs of the policy are a multiple of ETP * EP * PP."""
    sizes = "expert_tensor_parallel_size", "expert_model_parallel_size"
    tensor, model = (job.size(f"policy.megatron_cfg.{size}", 1) for size in sizes)
    product = tensor * model * job.pipeline_parallel
    if job.megatron and job.train_gpus % product:
        yield Problem(
            key="policy.megatron_cfg.expert_model_parallel_size",
            what="the policy's GPUs do not hold whole copies of the experts",
            got=f"{job.train_gpus} GPUs",
            allowed=f"multiples of ETP {tensor} * EP {model} * PP {job.pipeline_parallel}"
            f" = {product}",
        )


@rule(Effect.STOPS, "AssertionError when the policy is made")
def packing_or_dynamic(job: View) -> Iterator[Problem]:
    """Sequence packing and dynamic batches exclude each other."""
    if job.packs and job.flag("policy.dynamic_batching.enabled"):
        yield Problem(
            key="policy.dynamic_batching.enabled",
            what="excludes policy.sequence_packing.enabled",
            got="both true",
            fix="set one of them to false",
        )


@rule(Effect.STOPS, "AssertionError when the policy is made")
def dynamic_without_stages(job: View) -> Iterator[Problem]:
    """Dynamic batches need one pipeline stage."""
    if job.flag("policy.dynamic_batching.enabled") and job.pipeline_parallel > 1:
        yield Problem(
            key="policy.dynamic_batching.enabled",
            what="needs one pipeline stage",
            got=f"pipeline_model_parallel_size {job.pipeline_parallel}",
            allowed="1",
            fix="use policy.sequence_packing.enabled=true instead",
        )


@rule(Effect.STOPS, f"AssertionError when the policy is made, unless {IGNORE_ACCURACY} is set")
def equal_micro_batches(job: View) -> Iterator[Problem]:
    """From TP 4 on, the micro-batches of training and log-probs are equal."""
    is_ignored = IGNORE_ACCURACY in job.facts.variables
    if is_ignored or job.flag("loss_fn.force_on_policy_ratio") or job.tensor_parallel < 4:
        return
    train = job.number("policy.train_micro_batch_size")
    logprob = job.number("policy.logprob_batch_size")
    if train != logprob:
        yield Problem(
            key="policy.logprob_batch_size",
            what=f"with TP {job.tensor_parallel} it differs from policy.train_micro_batch_size,"
            " and log-probs depend on the batch",
            got=show(logprob),
            allowed=str(train),
            fix=f"set them equal, or {IGNORE_ACCURACY}=1 in the job to run all the same",
        )


@rule(Effect.STOPS, "`Sequence length L exceeds bin capacity C` when a long sequence comes")
def sequences_fit_bins(job: View) -> Iterator[Problem]:
    """The longest sequence, padded, fits a bin of packing."""
    if not job.packs:
        return
    longest = job.number("policy.max_total_sequence_length")
    longest = min(longest, job.number("policy.generation.vllm_cfg.max_model_len", longest))
    multiple = int(job.size("policy.make_sequence_length_divisible_by", 1))
    padded = -(-longest // multiple) * multiple
    for name in ("train_mb_tokens", "logprob_mb_tokens"):
        room = job.number(f"policy.sequence_packing.{name}")
        if padded > room:
            yield Problem(
                key=f"policy.sequence_packing.{name}",
                what=f"a sequence of {longest} tokens (padded to {padded}) does not fit",
                got=show(room),
                allowed=f"{padded} or more",
            )


@rule(Effect.STOPS, "AssertionError: packing must be a multiple of the parallel sizes")
def padding_multiple(job: View) -> Iterator[Problem]:
    """With Megatron's packing, sequences are padded to a multiple of 2 CP and of TP."""
    if not (job.megatron and job.packs):
        return
    context, tensor = job.context_parallel, job.tensor_parallel
    splits = tensor > 1 and job.flag("policy.megatron_cfg.sequence_parallel")
    factor = (2 * context if context > 1 else 1) * (tensor if splits else 1)
    multiple = job.number("policy.make_sequence_length_divisible_by")
    if multiple % factor:
        parts = [f"2 * CP {context}"] * (context > 1) + [f"TP {tensor}"] * splits
        yield Problem(
            key="policy.make_sequence_length_divisible_by",
            what="does not split over the parallel ranks",
            got=show(multiple),
            allowed=f"multiples of {' * '.join(parts)} = {factor}",
        )


@rule(Effect.STOPS, "AssertionError in the set-up of Megatron / ValueError of Automodel")
def context_parallel_packs(job: View) -> Iterator[Problem]:
    """Context parallelism needs packing with Megatron, and excludes it with the other backend."""
    if job.context_parallel <= 1:
        return
    section = "policy.megatron_cfg" if job.megatron else job.automodel
    if job.megatron != job.packs:
        yield Problem(
            key=f"{section}.context_parallel_size",
            what="needs sequence packing" if job.megatron else "excludes sequence packing",
            got=f"{job.context_parallel}, policy.sequence_packing.enabled {show(job.packs)}",
            allowed="1",
            fix=f"or set policy.sequence_packing.enabled={show(job.megatron)}",
        )


FUSED = "policy.megatron_cfg.use_fused_linear_logprobs"


@rule(Effect.STOPS, "AssertionError in `setup`", since=Version.HEAD)
def fused_logprobs(job: View) -> Iterator[Problem]:
    """Fused log-probs exclude packing, top-k, top-p and context parallelism."""
    if not (job.megatron and job.flag(FUSED)):
        return
    top_k, top_p = (job.get(f"policy.generation.{name}") for name in ("top_k", "top_p"))
    against = {
        "policy.sequence_packing.enabled true": job.packs,
        f"policy.generation.top_k {top_k}": top_k not in (None, -1),
        f"policy.generation.top_p {top_p}": top_p not in (None, 1, 1.0),
        f"context_parallel_size {job.context_parallel}": job.context_parallel > 1,
    }
    for reason in (text for text, holds in against.items() if holds):
        yield Problem(key=FUSED, what=f"is not possible with {reason}", fix="set it to false")
