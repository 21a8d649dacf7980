"""Checks of a rejection sampling run before it starts; readable without torch."""

from __future__ import annotations

from dataclasses import replace

from nemotron_style.runtime.step.compiled import CompiledJob, JobSite
from nemotron_style.steps.blocks.preflight.adapter_source import add_adapter
from nemotron_style.steps.blocks.preflight.job import Job, Rows, compile_checks
from nemotron_style.steps.blocks.preflight.machine import check_vllm
from nemotron_style.steps.blocks.preflight.training import training_load
from nemotron_style.steps.rs.actor.config import Config


def compile_job(config: Config, site: JobSite) -> CompiledJob:
    """Notes on what the run takes, and all that is wrong with it."""
    trainer, model, rs = config.trainer, config.model, config.model.rs
    lora, vllm = model.peft.lora, config.generation == "vllm"
    sampled = rs.rollout_micro_batch_size * rs.num_rollouts_per_prompt
    job = Job(
        load=replace(
            training_load(trainer, model, pass_rows=model.micro_batch_size, lora=lora),
            sampled_rows=sampled,
            samples_apart=vllm,
            frozen=0 if lora else 1,  # the model that the policy started from
        ),
        machines=trainer.num_nodes,
        processes=trainer.devices,
        batch=("model.global_batch_size", model.global_batch_size),
        rows={
            "prompts": Rows(
                "prompts",
                needed=0 if model.data.sample else rs.num_rollout_samples,
                key="model.rs.num_rollout_samples",
                what="a step takes more prompts than there are",
                fix="lower it, or set model.data.sample=true to repeat prompts",
                settings=model.data,
            ),
            "validation": Rows("prompts", settings=model.data),
        },
        longest=config.context,
        new_tokens=config.max_new_tokens,
        tokens=model.data.chat_prompt_tokens,
    )
    missing = check_vllm(site, key="generation") if vllm else ()
    return add_adapter(compile_checks(job, site, *missing), site)
