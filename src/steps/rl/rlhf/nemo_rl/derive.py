"""Values that follow from others: each says why it is what it is.

``derive`` fills what nobody gave; a given value that contradicts stays, and the rules name it.
``force`` sets what can be no other value on the path of NeMo-Gym.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import ceil

from nemotron_style.runtime.errors import Problem
from nemotron_style.steps.rl.rlhf.nemo_rl.draft import ABSENT, Draft, find
from nemotron_style.steps.rl.rlhf.nemo_rl.job_variables import JobVariable
from nemotron_style.steps.rl.rlhf.nemo_rl.schema import COMPARE, GYM, JUDGE
from nemotron_style.steps.rl.rlhf.nemo_rl.version import Version

MEGATRON = "policy.megatron_cfg"
OPTIMIZER = f"{MEGATRON}.optimizer"
SCHEDULER = f"{MEGATRON}.scheduler"
VLLM = "policy.generation.vllm_cfg"
PARAMS = f"{COMPARE}.genrm_responses_create_params"
TOKENS_PER_SECOND = 20
"""Of one answer of a judge that is busy: a cautious figure for deadlines."""
PORTS: Mapping[Version, Mapping[str, tuple[int, int]]] = {
    Version.V0_6_0: {GYM: (15001, 20000)},
    Version.V0_7_0: {
        "policy.generation": (11001, 15000),
        GYM: (15001, 20000),
        "cluster.master": (25000, 28000),
    },
    Version.HEAD: {
        "policy.generation": (3000, 4999),
        GYM: (5000, 5999),
        "cluster.master": (1400, 1999),
    },
}
"""Ranges that do not meet those of Ray's own processes, as each version starts them."""


def derive_batch(draft: Draft, *, gym: bool) -> None:
    """Group, batch and token sizes."""
    prompts = draft.get("grpo.num_prompts_per_step")
    group = draft.get("grpo.num_generations_per_prompt")
    samples = f"{prompts} prompts x {group} answers"
    draft.derive("policy.train_global_batch_size", prompts * group, f"one update: {samples}")
    why = f"the judge compares the {group} answers to a prompt, and waits for all of them"
    if gym:
        draft.derive(f"{COMPARE}.num_rollouts_per_prompt", group, why)
    length = draft.get("policy.max_total_sequence_length")
    for use, size in (("train", "train_micro_batch_size"), ("logprob", "logprob_batch_size")):
        tokens = length * draft.get(f"policy.{size}")
        for table in ("dynamic_batching", "sequence_packing"):
            why = f"{draft.get(f'policy.{size}')} sequences of {length} tokens (policy.{size})"
            draft.derive(f"policy.{table}.{use}_mb_tokens", tokens, why)
    draft.derive("grpo.reward_shaping.max_response_length", length, "the longest sequence")
    draft.derive(f"{VLLM}.max_model_len", length, "policy.max_total_sequence_length")
    draft.derive(f"{VLLM}.precision", draft.get("policy.precision"), "policy.precision")
    tp, cp = (draft.get(f"{MEGATRON}.{name}_parallel_size") for name in ("tensor_model", "context"))
    parts = 2 * cp if cp > 1 else 1
    parts *= tp if draft.get(f"{MEGATRON}.sequence_parallel") else 1
    why = "2 x CP where CP > 1, times TP with sequence_parallel"
    draft.derive("policy.make_sequence_length_divisible_by", parts, why)


def derive_advantages(draft: Draft) -> None:
    """The estimator in full: an absent one means other things in other versions."""
    for name in ("normalize_rewards", "use_leave_one_out_baseline"):
        value = draft.get(f"grpo.{name}")
        why = f"grpo.{name}, which newer versions read here alone"
        draft.derive(f"grpo.adv_estimator.{name}", True if value is None else value, why)


def derive_validation(draft: Draft, *, own_data: bool, allows_train: bool, gym: bool) -> None:
    """Whether validation happens, on what, and in which groups; and the metric to rank by."""
    group = draft.get("grpo.num_generations_per_prompt") if gym else 1
    data = draft.values.setdefault("data", {})
    if own_data or allows_train:
        variable = JobVariable.VALIDATION_DATA if own_data else JobVariable.TRAIN_DATA
        why = "rows that the job made" if own_data else "data.allow_train_as_validation"
        data["validation"] = {**(data.get("validation") or {})}
        draft.leave_to_job("data.validation.data_path", variable, why)
        why = f"each validation prompt is answered {group} times, as often as the judge waits for"
        if not gym:
            why = "a reward model scores each answer by itself"
        if draft.version >= Version.HEAD:
            repeated = draft.get("data.validation.repeat") or 1  # the older way to the same
            draft.derive("grpo.val_num_generations_per_prompt", max(1, group // repeated), why)
        elif gym:
            draft.derive("data.validation.repeat", group, why)
        metric = "val:total_reward/mean" if gym else "val:accuracy"
    else:
        data.pop("validation", None)
        why = "there is no validation data"
        draft.force("grpo.val_period", 0, why)
        for name in ("grpo.val_at_start", "grpo.val_at_end"):
            draft.force(name, False, why)
        if draft.version >= Version.HEAD:
            draft.derive("grpo.val_num_generations_per_prompt", group, "as often as in training")
        metric = None
    _derive_metric(draft, metric)
    if gym:
        why = "NeMo-Gym's script takes all rows and no number"
        draft.force("grpo.max_val_samples", None, why)


def _derive_metric(draft: Draft, metric: str | None) -> None:
    key = "checkpointing.metric_name"
    name = find(draft.given, key)
    if isinstance(name, str) and name and not name.startswith(("val:", "train:")):
        draft.force(key, f"val:{name}", "NeMo-RL demands val: or train: before the name")
    elif metric is None and isinstance(name, str) and name.startswith("val:"):
        draft.force(key, None, "there is no validation to rank checkpoints by")
    else:
        draft.derive(key, metric, "mean reward of validation" if metric else "nothing to rank by")


def derive_backend(draft: Draft) -> None:
    """Megatron, whatever else was asked for: only it writes a checkpoint that goes on."""
    other = "automodel_cfg" if draft.version >= Version.V0_8_0 else "dtensor_cfg"
    why = "the step makes a Megatron checkpoint, and DTensor writes none"
    if draft.get(f"policy.{other}.enabled") or not draft.get(f"{MEGATRON}.enabled"):
        draft.force(f"policy.{other}.enabled", False, why)
        draft.force(f"{MEGATRON}.enabled", True, why)
        _carry_optimizer(draft)
    for name in ("optimizer", "scheduler"):
        if draft.get(f"policy.{name}") is not None:
            why = f"Megatron's stands in {MEGATRON}.{name}"
            draft.force(f"policy.{name}", None, why)
    chunk = draft.get("policy.logprob_chunk_size")
    why = f"policy.logprob_chunk_size={chunk} needs it" if chunk else "no chunks of log-probs"
    draft.derive(f"{MEGATRON}.defer_fp32_logits", bool(chunk), why)


def _carry_optimizer(draft: Draft) -> None:
    """What torch's optimizer was told, said to Megatron's."""
    kwargs = draft.get("policy.optimizer.kwargs") or {}
    betas = kwargs.get("betas") or (None, None)
    named = {
        "lr": kwargs.get("lr"),
        "weight_decay": kwargs.get("weight_decay"),
        "adam_eps": kwargs.get("eps"),
        "adam_beta1": betas[0],
        "adam_beta2": betas[1],
    }
    for name, value in named.items():
        if value is not None:
            value = float(value)  # 1e-8 without a dot is text in YAML 1.1
            draft.derive(f"{OPTIMIZER}.{name}", value, "policy.optimizer.kwargs, for Megatron")


def derive_optimizer(draft: Draft) -> None:
    """Rates and precisions of Megatron's optimizer that follow from others."""
    precision, rate = draft.get("policy.precision"), draft.get(f"{OPTIMIZER}.lr")
    draft.derive(f"{MEGATRON}.pipeline_dtype", precision, "policy.precision")
    draft.derive(f"{OPTIMIZER}.bf16", precision == "bfloat16", f"policy.precision={precision}")
    draft.derive(f"{OPTIMIZER}.fp16", precision == "float16", f"policy.precision={precision}")
    clip = draft.get("policy.max_grad_norm")
    draft.derive(f"{OPTIMIZER}.clip_grad", clip, "policy.max_grad_norm")
    draft.derive(f"{OPTIMIZER}.min_lr", rate, "a constant rate: optimizer.lr")
    warm_up = min(draft.get(f"{OPTIMIZER}.min_lr"), rate / 10)
    draft.derive(f"{SCHEDULER}.lr_warmup_init", warm_up, "a tenth of optimizer.lr")
    decay = draft.get(f"{OPTIMIZER}.weight_decay")
    for name in ("start_weight_decay", "end_weight_decay"):
        draft.derive(f"{SCHEDULER}.{name}", decay, "optimizer.weight_decay, constant")
    samples = draft.get("grpo.num_prompts_per_step") * draft.get("grpo.num_generations_per_prompt")
    updates = max(1, samples // draft.get("policy.train_global_batch_size"))
    steps = draft.get("grpo.max_num_steps") * updates
    warm_up_steps = draft.get(f"{SCHEDULER}.lr_warmup_iters")
    why = f"{draft.get('grpo.max_num_steps')} steps x {updates} updates, beyond the warm-up"
    draft.derive(f"{SCHEDULER}.lr_decay_iters", max(steps, warm_up_steps + 1), why)


def derive_generation(draft: Draft, *, gym: bool) -> None:
    """vLLM as NeMo-Gym talks to it; without NeMo-Gym as it was given."""
    if gym:
        why = "NeMo-Gym asks the policy over HTTP"
        draft.force(f"{VLLM}.async_engine", True, why)
        draft.force(f"{VLLM}.expose_http_server", True, why)
        for name in ("top_k", "stop_strings", "stop_token_ids"):
            draft.force(f"policy.generation.{name}", None, "the path of NeMo-Gym takes none")
    if draft.version >= Version.HEAD:
        for name in ("temperature", "top_p", "top_k"):
            value = draft.get(f"policy.generation.{name}")
            why = f"validation samples as training does (policy.generation.{name})"
            draft.derive(f"policy.generation.val_{name}", value, why)


def derive_ports(draft: Draft, *, gym: bool) -> None:
    """Ports of generation, NeMo-Gym and the trainer, apart from those of Ray."""
    version = min(draft.version, Version.HEAD)
    for block, (low, high) in PORTS[version].items():
        if block == GYM and not gym:
            continue
        names = (
            ("cluster.master_port_range_low", "cluster.master_port_range_high")
            if block == "cluster.master"
            else (f"{block}.port_range_low", f"{block}.port_range_high")
        )
        why = f"apart from the ports of Ray in NeMo-RL {version}"
        for name, value in zip(names, (low, high), strict=True):
            draft.derive(name, value, why)


def derive_judge(draft: Draft) -> int:
    """The judge's context and deadlines; returns the seconds that one verdict may take."""
    model = draft.get(f"{GYM}.genrm_model_name")
    draft.derive(f"{JUDGE}.model", model, f"{GYM}.genrm_model_name")
    budget = draft.get(f"{PARAMS}.max_output_tokens")
    length, answer = (
        draft.get(key)
        for key in ("policy.max_total_sequence_length", "policy.generation.max_new_tokens")
    )
    context = ceil((length + answer + budget) / 256) * 256
    why = f"conversation and an answer {length} + another {answer} + verdict {budget} tokens"
    draft.derive(f"{JUDGE}.vllm_serve_kwargs.max_model_len", context, why)
    tries = 1 + draft.get(f"{COMPARE}.genrm_parse_retries")
    seconds = ceil(tries * budget / TOKENS_PER_SECOND)
    if draft.version >= Version.V0_8_0:
        why = f"{tries} tries of {budget} tokens at {TOKENS_PER_SECOND} a second"
        verdict = float(max(1800, seconds))
        draft.derive(f"{COMPARE}.judge_request_timeout_s", verdict, why)
        draft.derive(f"{COMPARE}.cohort_evaluation_timeout_s", 2 * verdict, "two verdicts in a row")
        draft.derive(f"{COMPARE}.cohort_collection_timeout_s", 1800.0, "the slowest answer")
        draft.derive(f"{COMPARE}.cohort_result_ttl_s", 21600.0, "late retries find their reward")
        draft.derive(f"{COMPARE}.max_terminal_cohorts", 4096, "rewards kept for late retries")
    return seconds


def derive_start(draft: Draft, kind: str | None) -> None:
    """Where the policy's weights and the rows come from, and where a run writes.

    ``kind`` is that of the checkpoint to start from; None: the model of Hugging Face.
    """
    draft.values["policy"].pop("pretrained_checkpoint", None)
    if kind == "checkpoint_nemo_rl" and draft.version < Version.V0_7_0:
        draft.problems.append(_explain_no_start(draft.version))
    elif kind == "checkpoint_nemo_rl":
        _start_from_megatron(draft)
    elif kind:
        why = "the input is a Hugging Face checkpoint"
        draft.leave_to_job("policy.model_name", JobVariable.POLICY_MODEL, why)
    why = "policy.model_name"
    draft.derive("policy.tokenizer.name", draft.get("policy.model_name"), why)
    why = "rows in the form that NeMo-RL reads, made by the job"
    draft.leave_to_job("data.train.data_path", JobVariable.TRAIN_DATA, why)
    why = "each run has its own, where a requeue finds it"
    draft.leave_to_job("checkpointing.checkpoint_dir", JobVariable.CHECKPOINTS, why)
    draft.leave_to_job("logger.log_dir", JobVariable.LOGS, "the job reads the logs there")
    draft.force("checkpointing.enabled", True, "the result is a checkpoint")
    draft.force("logger.tensorboard_enabled", True, "the job reads the metrics from its files")


def _explain_no_start(version: Version) -> Problem:
    return Problem(
        key="policy.pretrained_checkpoint.path",
        what=f"NeMo-RL {version} starts from Hugging Face checkpoints alone",
        got="checkpoint_nemo_rl",
        allowed="checkpoint_hf",
        fix="run the export that its record names, or take v0.7.0 (nemo_rl.version, image)",
    )


def _start_from_megatron(draft: Draft) -> None:
    why = "policy and reference start from the input; model_name is its Hugging Face twin"
    block = "policy.pretrained_checkpoint"
    draft.leave_to_job(f"{block}.path", JobVariable.PRETRAINED, why)
    kind = find(draft.given, f"{block}.format")
    if kind in (ABSENT, None):
        why = "as the checkpoint is, which the job sees"
        draft.leave_to_job(f"{block}.format", JobVariable.PRETRAINED_FORMAT, why)
    else:
        draft.values["policy"]["pretrained_checkpoint"]["format"] = kind
