"""Checks of the training of a reward model before it starts; readable without torch."""

from __future__ import annotations

from nemotron_style.runtime.step.compiled import CompiledJob, JobSite
from nemotron_style.steps.blocks.preflight.job import Job, Rows, compile_checks
from nemotron_style.steps.blocks.preflight.training import batch_rows, training_load
from nemotron_style.steps.reward.regression.config import Config


def compile_job(config: Config, site: JobSite) -> CompiledJob:
    """Notes on what the run takes, and all that is wrong with it."""
    trainer, model = config.trainer, config.model
    key, size = "model.global_batch_size", model.global_batch_size
    job = Job(
        load=training_load(trainer, model, pass_rows=model.micro_batch_size),
        machines=trainer.num_nodes,
        processes=trainer.devices,
        batch=(key, size),
        rows={
            "data": batch_rows("ratings", model.data, key=key, size=size, sample=model.data.sample),
            "validation": Rows("ratings", settings=model.data),
        },
        longest=lambda limit: min(limit, model.data.seq_length or limit),
        tokens=model.data.chat_prompt_tokens,
    )
    return compile_checks(job, site)
