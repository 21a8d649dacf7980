"""Checks of sampling for SteerLM 2.0 before it starts; readable without torch."""

from __future__ import annotations

from nemotron_style.runtime.step.compiled import CompiledJob, JobSite
from nemotron_style.steps.blocks.preflight.job import Job, Rows, compile_checks
from nemotron_style.steps.blocks.preflight.memory import Load
from nemotron_style.steps.data.steerlm2.config import Config


def compile_job(config: Config, site: JobSite) -> CompiledJob:
    """Notes on what the run takes, and all that is wrong with it."""
    sampling = config.sampling
    job = Job(
        load=Load(half=config.trainer.half, trains=False, sampled_rows=sampling.max_rows),
        model="sampler",
        rows={
            "prompts": Rows(
                "prompts",
                needed=config.data.validation_prompts + 1,
                key="data.validation_prompts",
                what="no prompts are left for training",
                fix="lower it, or give more prompts",
                settings=config.data,
            )
        },
        new_tokens=lambda limit: min(limit, sampling.max_new_tokens),
        tokens=config.model.data.chat_prompt_tokens,
        memory_fix="sample on a machine with more memory",
    )
    return compile_checks(job, site)
