"""Checks of an RLHF run of the embedded loop before it starts; readable without torch."""

from __future__ import annotations

from nemotron_style.runtime.step.compiled import CompiledJob, JobSite
from nemotron_style.steps.blocks.preflight.adapter_source import add_adapter
from nemotron_style.steps.blocks.preflight.job import Job, Rows, compile_checks
from nemotron_style.steps.blocks.preflight.machine import check_vllm
from nemotron_style.steps.blocks.preflight.memory import Load
from nemotron_style.steps.blocks.settings.parallel_config import NEMO_RL_KEYS
from nemotron_style.steps.rl.rlhf.config import Config


def compile_job(config: Config, site: JobSite) -> CompiledJob:
    """Notes on what the run takes, and all that is wrong with it."""
    policy, machines = config.policy, config.cluster.num_nodes
    lora = policy.megatron_cfg.peft.as_peft.lora
    vllm = policy.generation.backend == "vllm"
    sampled = -(-config.samples_per_step // (machines * config.processes))
    job = Job(
        load=Load(
            half=policy.half,
            tensor=policy.megatron_cfg.tensor_model_parallel_size,
            pipeline=policy.megatron_cfg.pipeline_model_parallel_size,
            spread_optimizer=policy.optim.distributed,
            activations=policy.megatron_cfg.activations,
            pass_rows=policy.train_micro_batch_size,
            sampled_rows=sampled,
            samples_apart=vllm,
            lora=lora,
            frozen=0 if lora else 1,  # the model that the policy is held to
        ),
        machines=machines,
        processes=config.processes,
        batch=("policy.train_global_batch_size", policy.train_global_batch_size),
        rows={
            "prompts": Rows(
                "prompts",
                needed=config.grpo.num_prompts_per_step,
                key="grpo.num_prompts_per_step",
                what="a step takes more prompts than there are",
                fix="lower it",
                settings=config.data,
            ),
            "validation": Rows("prompts", settings=config.data),
        },
        longest=config.context,
        new_tokens=config.max_new_tokens,
        keys=("policy.precision", "processes"),
        activation_keys=NEMO_RL_KEYS,
        precision_fix="set policy.precision=float32",
    )
    missing = check_vllm(site, key="policy.generation.backend") if vllm else ()
    return add_adapter(compile_checks(job, site, *missing), site)
