"""How responses are sampled: vLLM's sizes, sampling parameters, and its share of the GPUs."""

from __future__ import annotations

from collections.abc import Iterator

from nemotron_style.runtime.errors import Problem
from nemotron_style.steps.rl.rlhf.nemo_rl.draft import show
from nemotron_style.steps.rl.rlhf.nemo_rl.rules.rule import Effect, rule
from nemotron_style.steps.rl.rlhf.nemo_rl.rules.view import View
from nemotron_style.steps.rl.rlhf.nemo_rl.version import Version

GENERATION = "policy.generation"
VLLM = f"{GENERATION}.vllm_cfg"
RESOURCES = f"{GENERATION}.colocated.resources"
CORRECTION = "loss_fn.use_importance_sampling_correction"


def uses_vllm(job: View) -> bool:
    return bool(job.get(f"{GENERATION}.backend", "vllm") == "vllm")


@rule(Effect.STOPS, "AssertionError `World size must be a multiple of model parallel size`")
def gpus_fill_engines(job: View) -> Iterator[Problem]:
    """The GPUs of generation are a multiple of vLLM's TP * PP."""
    tensor, pipeline = (job.size(f"{VLLM}.{n}_parallel_size", 1) for n in ("tensor", "pipeline"))
    if uses_vllm(job) and job.generation_gpus % (tensor * pipeline):
        yield Problem(
            key=f"{VLLM}.tensor_parallel_size",
            what="the GPUs of generation do not hold whole engines",
            got=f"{job.generation_gpus} GPUs",
            allowed=f"multiples of TP {tensor} * PP {pipeline} = {tensor * pipeline}",
        )


@rule(Effect.STOPS, "AssertionError when vLLM is made")
def stages_need_async(job: View) -> Iterator[Problem]:
    """vLLM's pipeline stages need its asynchronous engine."""
    stages = job.number(f"{VLLM}.pipeline_parallel_size", 1)
    # The script of NeMo-Gym sets async_engine itself.
    if uses_vllm(job) and stages > 1 and not (job.gym or job.flag(f"{VLLM}.async_engine")):
        yield Problem(
            key=f"{VLLM}.pipeline_parallel_size",
            what=f"needs {VLLM}.async_engine=true",
            got=show(stages),
            allowed="1",
        )


@rule(Effect.STOPS, "AssertionError when vLLM is made (RL#1101)")
def engine_experts(job: View) -> Iterator[Problem]:
    """vLLM's EP is 1, or a multiple of TP; with the asynchronous engine, 1 or TP."""
    experts = job.size(f"{VLLM}.expert_parallel_size", 1)
    tensor = job.size(f"{VLLM}.tensor_parallel_size", 1)
    is_async = job.gym or job.flag(f"{VLLM}.async_engine")
    breaks = experts % tensor or (is_async and experts != tensor)
    if uses_vllm(job) and experts > 1 and breaks:
        yield Problem(
            key=f"{VLLM}.expert_parallel_size",
            what="does not go with vLLM's TP" + (" and its asynchronous engine" * is_async),
            got=show(experts),
            allowed=f"1 or {'' if is_async else 'multiples of '}TP {tensor}",
        )


@rule(Effect.STOPS, "ValueError when vLLM is made")
def sampling_range(job: View) -> Iterator[Problem]:
    """`top_p` is above 0 and at most 1; `top_k` is null, -1 or positive."""
    top_p, top_k = job.number(f"{GENERATION}.top_p", 1), job.number(f"{GENERATION}.top_k", -1)
    if not 0 < top_p <= 1:
        allowed = "above 0, up to 1"
        yield Problem(
            key=f"{GENERATION}.top_p", what="is out of range", got=show(top_p), allowed=allowed
        )
    if top_k != -1 and top_k < 1 and not job.gym:
        allowed = "null, -1, or 1 and more"
        yield Problem(
            key=f"{GENERATION}.top_k", what="is out of range", got=show(top_k), allowed=allowed
        )


@rule(Effect.STOPS, "AssertionError in `setup`")
def fp8_corrects(job: View) -> Iterator[Problem]:
    """vLLM in fp8 needs the importance sampling correction."""
    if job.get(f"{VLLM}.precision") == "fp8" and not job.flag(CORRECTION):
        yield Problem(
            key=f"{VLLM}.precision",
            what=f"needs {CORRECTION}=true",
            got="fp8 with false",
            fix=f"set {CORRECTION}=true",
        )


@rule(Effect.STOPS, "AssertionError in `setup`")
def fp8_cache(job: View) -> Iterator[Problem]:
    """A KV cache in fp8 needs fp8 weights, Megatron with one stage, and no asynchronous engine."""
    key = f"{VLLM}.kv_cache_dtype"
    form = str(job.get(key))
    if not form.startswith("fp8"):
        return
    needs = {
        f"{VLLM}.precision=fp8": job.get(f"{VLLM}.precision") == "fp8",
        f"no {job.automodel}": not job.flag(f"{job.automodel}.enabled"),
        "no asynchronous engine, so no NeMo-Gym": not (job.gym or job.flag(f"{VLLM}.async_engine")),
        "pipeline_model_parallel_size=1": job.pipeline_parallel == 1,
    }
    for wanted in (text for text, holds in needs.items() if not holds):
        yield Problem(key=key, what=f"needs {wanted}", got=form, fix=f"set {key}=auto")


@rule(Effect.STOPS, "AssertionError in `setup`: no GPUs for training")
def split_one_node(job: View) -> Iterator[Problem]:
    """On one node, generation of its own takes some of the GPUs and leaves some."""
    if job.colocated or job.num_nodes != 1:
        return
    gpus, nodes = job.get(f"{RESOURCES}.gpus_per_node"), job.get(f"{RESOURCES}.num_nodes")
    taken = gpus if isinstance(gpus, int) else 0
    if not 0 < taken < job.gpus_per_node:
        left = f": {job.gpus_per_node} GPUs - {taken} = {job.gpus_per_node - taken} for training"
        yield Problem(
            key=f"{RESOURCES}.gpus_per_node",
            what=f"training and generation share one node{left}",
            got=show(gpus),
            allowed=f"1 to {job.gpus_per_node - 1}",
        )
    if nodes not in (None, 1):
        what = "generation and training share one node"
        key = f"{RESOURCES}.num_nodes"
        yield Problem(key=key, what=what, got=show(nodes), allowed="null or 1")


@rule(Effect.STOPS, "AssertionError in `setup`: no nodes for training")
def split_nodes(job: View) -> Iterator[Problem]:
    """On several nodes, generation of its own takes whole nodes and leaves some."""
    if job.colocated or job.num_nodes == 1:
        return
    gpus, nodes = job.get(f"{RESOURCES}.gpus_per_node"), job.get(f"{RESOURCES}.num_nodes")
    taken = nodes if isinstance(nodes, int) else 0
    if not 0 < taken < job.num_nodes:
        left = f": {job.num_nodes} nodes - {taken} = {job.num_nodes - taken} for training"
        yield Problem(
            key=f"{RESOURCES}.num_nodes",
            what=f"generation takes whole nodes{left}",
            got=show(nodes),
            allowed=f"1 to {job.num_nodes - 1}",
        )
    if gpus != job.gpus_per_node:
        yield Problem(
            key=f"{RESOURCES}.gpus_per_node",
            what="generation takes whole nodes",
            got=show(gpus),
            allowed=f"cluster.gpus_per_node = {job.gpus_per_node}",
        )


@rule(Effect.STOPS, "AssertionError in `setup`")
def some_gpus(job: View) -> Iterator[Problem]:
    """The policy has at least one GPU."""
    for key in ("cluster.gpus_per_node", "cluster.num_nodes"):
        if job.number(key) < 1:
            what = "leaves nothing to train on"
            yield Problem(key=key, what=what, got=show(job.number(key)), allowed="1 or more")


@rule(Effect.STOPS, "AssertionError in `setup`", before=Version.V0_7_0)
def megatron_colocated(job: View) -> Iterator[Problem]:
    """At v0.6.0, generation by Megatron shares the GPUs of training."""
    if job.get(f"{GENERATION}.backend") == "megatron" and not job.colocated:
        yield Problem(
            key=f"{GENERATION}.colocated.enabled",
            what="generation by Megatron has no GPUs of its own at v0.6.0",
            got="false",
            allowed="true",
        )


@rule(Effect.STOPS, "AssertionError when vLLM starts")
def metrics_interval(job: View) -> Iterator[Problem]:
    """vLLM's metrics are read at an interval above 0."""
    key = f"{VLLM}.vllm_metrics_logger_interval"
    is_on = uses_vllm(job) and job.flag(f"{VLLM}.enable_vllm_metrics_logger")
    if is_on and job.number(key) <= 0:
        what, allowed = "in seconds", "above 0"
        yield Problem(key=key, what=what, got=show(job.number(key)), allowed=allowed)


@rule(Effect.SILENT, "responses end at the smaller of both; a warning from v0.7.0 on", advice=True)
def context_fits(job: View) -> Iterator[Problem]:
    """Responses may be as long as the policy's sequences."""
    longest = job.number("policy.max_total_sequence_length")
    context = job.number(f"{VLLM}.max_model_len")
    if longest > context:
        yield Problem(
            key=f"{VLLM}.max_model_len",
            what=f"{context} ends responses before policy.max_total_sequence_length {longest}",
        )


@rule(Effect.STOPS, "AssertionError in `setup`", since=Version.HEAD)
def validation_sampling(job: View) -> Iterator[Problem]:
    """Validation samples as training does, but for temperature and top-p with NeMo-Gym."""
    names = ("temperature", "top_p", "top_k")
    differ = [n for n in names if job.get(f"{GENERATION}.val_{n}") != job.get(f"{GENERATION}.{n}")]
    if differ and not (job.gym and uses_vllm(job)):
        yield Problem(
            key=f"{GENERATION}.val_{differ[0]}",
            what="differs from training, which only vLLM with NeMo-Gym can do",
            got=show(job.get(f"{GENERATION}.val_{differ[0]}")),
            allowed=show(job.get(f"{GENERATION}.{differ[0]}")),
        )
    elif job.gym and job.get(f"{GENERATION}.val_top_k"):
        got = show(job.get(f"{GENERATION}.val_top_k"))
        what = "is not possible with NeMo-Gym"
        yield Problem(key=f"{GENERATION}.val_top_k", what=what, got=got, allowed="null")
