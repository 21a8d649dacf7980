"""Checks of a SteerLM 2.0 run before it starts; readable without torch."""

from __future__ import annotations

from nemotron_style.runtime.step.compiled import CompiledJob, JobSite
from nemotron_style.steps.blocks.preflight.adapter_source import add_adapter
from nemotron_style.steps.blocks.preflight.job import Job, Rows, compile_checks
from nemotron_style.steps.blocks.preflight.memory import Load
from nemotron_style.steps.sft.steerlm2.config import Config


def compile_job(config: Config, site: JobSite) -> CompiledJob:
    """Notes on what the run takes, and all that is wrong with it."""
    trainer, model = config.trainer, config.model
    job = Job(
        load=Load(
            half=trainer.half,
            tensor=model.tensor_model_parallel_size,
            pipeline=model.pipeline_model_parallel_size,
            spread_optimizer=model.optim.distributed,
            lora=model.peft.lora,
            activations=model.activations,
            pass_rows=model.steerlm2.micro_batch_size,
        ),
        machines=trainer.num_nodes,
        processes=trainer.devices,
        rows={
            "data": Rows(
                None,
                needed=0 if model.data.sample else model.data.train_ds.global_batch_size,
                key="model.data.train_ds.global_batch_size",
                fix="lower it, or set model.data.sample=true and max_steps to repeat rows",
            ),
            "validation": Rows(None),
        },
        longest=config.longest,
        tokens=model.data.chat_prompt_tokens,
    )
    return add_adapter(compile_checks(job, site), site)
