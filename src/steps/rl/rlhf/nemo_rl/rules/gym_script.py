"""What NeMo-RL's script for NeMo-Gym asks of a configuration."""

from __future__ import annotations

from collections.abc import Iterator

from nemotron_style.runtime.errors import Problem
from nemotron_style.steps.rl.rlhf.nemo_rl.draft import show
from nemotron_style.steps.rl.rlhf.nemo_rl.rules.rule import Effect, rule
from nemotron_style.steps.rl.rlhf.nemo_rl.rules.view import View
from nemotron_style.steps.rl.rlhf.nemo_rl.version import Version

VLLM = "policy.generation.vllm_cfg"
ADVANTAGES = ("grpo.invalid_tool_call_advantage", "grpo.malformed_thinking_advantage")


@rule(Effect.STOPS, "AssertionError without a message")
def gym_is_used(job: View) -> Iterator[Problem]:
    """`env.nemo_gym` needs `env.should_use_nemo_gym`."""
    if job.table("env.nemo_gym") and not job.gym:
        yield Problem(
            key="env.should_use_nemo_gym",
            what="env.nemo_gym is given and would not be used",
            got=show(job.get("env.should_use_nemo_gym")),
            allowed="true",
            fix="or leave env.nemo_gym out",
        )


@rule(Effect.STOPS, "KeyError when the script sets async_engine")
def engine_settings(job: View) -> Iterator[Problem]:
    """vLLM's settings are there."""
    backend = job.get("policy.generation.backend", "vllm")
    if job.gym and backend == "vllm" and not job.table(VLLM):
        yield Problem(key=VLLM, what="is missing, and NeMo-Gym reaches the policy through vLLM")


@rule(Effect.SILENT, "the script sets both to true", advice=True)
def async_server(job: View) -> Iterator[Problem]:
    """`async_engine` and `expose_http_server` are true with NeMo-Gym."""
    for name in ("async_engine", "expose_http_server"):
        if job.gym and job.get(f"{VLLM}.{name}") is False:
            yield Problem(key=f"{VLLM}.{name}", what="false is made true, which NeMo-Gym needs")


@rule(Effect.STOPS, "ValueError `A non-null grpo.max_val_samples parameter is not supported`")
def all_validation_rows(job: View) -> Iterator[Problem]:
    """`grpo.max_val_samples` is null: the whole file is used."""
    value = job.get("grpo.max_val_samples")
    if job.gym and value is not None:
        yield Problem(
            key="grpo.max_val_samples",
            what="with NeMo-Gym the whole validation file is used",
            got=show(value),
            allowed="null",
            fix="shorten the file instead",
        )


@rule(Effect.STOPS, "AssertionError `Validation dataset is required if validation is enabled`")
def validation_data(job: View) -> Iterator[Problem]:
    """Validation needs rows."""
    is_on = job.number("grpo.val_period", 0) > 0
    is_on = is_on or job.flag("grpo.val_at_start") or job.flag("grpo.val_at_end")
    has_rows = job.get("data.validation") is not None
    has_rows = has_rows or job.number("data.train.split_validation_size", 0) > 0
    if is_on and not has_rows:
        yield Problem(
            key="data.validation",
            what="is missing, and validation is asked for by grpo.val_period,"
            " grpo.val_at_start or grpo.val_at_end",
            got=f"val_period {job.number('grpo.val_period', 0)}",
            fix="give data.validation.data_path, or set grpo.val_period=0 and the others to false",
        )


@rule(Effect.STOPS, "AssertionError `Top k is not supported` in the first rollout")
def no_top_k(job: View) -> Iterator[Problem]:
    """`policy.generation.top_k` is null with NeMo-Gym."""
    value = job.get("policy.generation.top_k")
    if job.gym and value:
        what = "the API of NeMo-Gym has no top-k"
        yield Problem(
            key="policy.generation.top_k",
            what=what,
            got=show(value),
            allowed="null",
            fix="use top_p",
        )


@rule(Effect.SILENT, "the script sets both to null")
def no_stop(job: View) -> Iterator[Problem]:
    """`stop_strings` and `stop_token_ids` are null with NeMo-Gym."""
    for name in ("stop_strings", "stop_token_ids"):
        value = job.get(f"policy.generation.{name}")
        if job.gym and value:
            what = "is not passed on by NeMo-Gym"
            key = f"policy.generation.{name}"
            yield Problem(key=key, what=what, got=show(value), allowed="null")


@rule(Effect.STOPS, "ValueError when training starts", since=Version.V0_7_0)
def penalties_need_gym(job: View) -> Iterator[Problem]:
    """Penalties for form need NeMo-Gym."""
    if job.gym:
        return
    penalties = job.table("reward_penalties")
    set_ones = [f"reward_penalties.{name}" for name, value in penalties.items() if value is True]
    for key in [*set_ones, *(key for key in ADVANTAGES if job.get(key) is not None)]:
        yield Problem(
            key=key,
            what="needs env.should_use_nemo_gym=true",
            got=show(job.get(key)),
            fix="leave it out",
        )


@rule(Effect.STOPS, "ValueError when the configuration is read", since=Version.HEAD)
def unwanted_tokens(job: View) -> Iterator[Problem]:
    """A penalty for unwanted tokens names them."""
    key = "reward_penalties.token_ids.unwanted"
    if job.flag("reward_penalties.penalize_unwanted_tokens") and not job.get(key):
        what = "reward_penalties.penalize_unwanted_tokens needs the tokens"
        yield Problem(key=key, what=what, got=show(job.get(key)), allowed="a list of ids")


@rule(Effect.STOPS, "ValueError when the configuration is read", since=Version.V0_8_0)
def no_full_distillation(job: View) -> Iterator[Problem]:
    """Full on-policy distillation has a script of its own."""
    key = "on_policy_distillation.full"
    if job.get(key):
        yield Problem(key=key, what="is not possible with the script of GRPO", allowed="null")


@rule(Effect.STOPS, "NotImplementedError after all workers are up")
def async_excludes(job: View) -> Iterator[Problem]:
    """Asynchronous GRPO has no dynamic sampling, reward scaling or shaping, or several loaders."""
    if not job.flag("grpo.async_grpo.enabled"):
        return
    for key in (
        "grpo.use_dynamic_sampling",
        "grpo.reward_scaling.enabled",
        "grpo.reward_shaping.enabled",
        "data.use_multiple_dataloader",
    ):
        if job.flag(key):
            what = "is not possible with grpo.async_grpo.enabled"
            yield Problem(key=key, what=what, got="true", allowed="false")


@rule(Effect.STOPS, "AssertionError after all workers are up")
def async_corrects(job: View) -> Iterator[Problem]:
    """Asynchronous GRPO needs the importance sampling correction."""
    key = "loss_fn.use_importance_sampling_correction"
    if job.flag("grpo.async_grpo.enabled") and not job.flag(key):
        what = "grpo.async_grpo.enabled trains on responses of older weights"
        yield Problem(key=key, what=what, got="false", allowed="true")


@rule(Effect.STOPS, "AssertionError after all workers are up")
def async_apart(job: View) -> Iterator[Problem]:
    """Asynchronous GRPO generates on GPUs of its own (from head on, or by Megatron)."""
    by_megatron = job.get("policy.generation.backend") == "megatron"
    is_possible = by_megatron and job.version >= Version.HEAD
    if job.flag("grpo.async_grpo.enabled") and job.colocated and not is_possible:
        yield Problem(
            key="policy.generation.colocated.enabled",
            what="grpo.async_grpo.enabled generates while it trains",
            got="true",
            allowed="false",
            fix="give generation its own GPUs under policy.generation.colocated.resources",
        )


@rule(Effect.STOPS, "AssertionError when NeMo-Gym starts", before=Version.HEAD)
def rollout_attempts(job: View) -> Iterator[Problem]:
    """Rollouts are tried at least once."""
    key = "env.nemo_gym.rollout_max_attempts_to_avoid_lp_nan"
    if job.gym and job.number(key, 1) < 1:
        yield Problem(
            key=key, what="is out of range", got=show(job.number(key)), allowed="1 or more"
        )


@rule(Effect.SILENT, "a response that is cut by its own limit is not marked", advice=True)
def overlong_limit(job: View) -> Iterator[Problem]:
    """With overlong filtering, responses may fill the whole context."""
    limit = job.number("policy.generation.max_new_tokens")
    context = job.number(f"{VLLM}.max_model_len")
    if job.gym and job.flag("grpo.overlong_filtering") and limit < context:
        yield Problem(
            key="grpo.overlong_filtering",
            what=f"marks responses only at max_model_len {context}, not those that are cut at"
            f" policy.generation.max_new_tokens {limit}",
        )


@rule(Effect.STOPS, "AssertionError in `setup`", since=Version.HEAD)
def early_stop(job: View) -> Iterator[Problem]:
    """An early stop has a metric and a threshold; `pass_k` needs groups in validation."""
    metric = job.get("grpo.stop_at_validation_metric")
    groups = job.number("grpo.val_num_generations_per_prompt", 1)
    if metric is not None and job.get("grpo.stop_at_validation_threshold") is None:
        what, got = "grpo.stop_at_validation_metric needs it", "null"
        yield Problem(key="grpo.stop_at_validation_threshold", what=what, got=got)
    if metric == "pass_k" and groups <= 1:
        key = "grpo.val_num_generations_per_prompt"
        yield Problem(key=key, what="pass_k needs more", got=show(groups), allowed="2 or more")
