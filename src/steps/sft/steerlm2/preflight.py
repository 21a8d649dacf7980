"""Checks of a SteerLM 2.0 run before it starts; readable without torch."""

from __future__ import annotations

from nemotron_style.runtime.step.compiled import CompiledJob, JobSite
from nemotron_style.steps.blocks.preflight.adapter_source import add_adapter
from nemotron_style.steps.blocks.preflight.job import Job, Rows, compile_checks
from nemotron_style.steps.blocks.preflight.training import batch_rows, training_load
from nemotron_style.steps.sft.steerlm2.config import Config


def compile_job(config: Config, site: JobSite) -> CompiledJob:
    """Notes on what the run takes, and all that is wrong with it."""
    trainer, model = config.trainer, config.model
    job = Job(
        load=training_load(
            trainer, model, pass_rows=model.steerlm2.micro_batch_size, lora=model.peft.lora
        ),
        machines=trainer.num_nodes,
        processes=trainer.devices,
        rows={
            "data": batch_rows(
                None,
                model.data,
                key="model.data.train_ds.global_batch_size",
                size=model.data.train_ds.global_batch_size,
                sample=model.data.sample,
            ),
            "validation": Rows(None, settings=model.data),
        },
        longest=config.longest,
        tokens=model.data.chat_prompt_tokens,
    )
    return add_adapter(compile_checks(job, site), site)
