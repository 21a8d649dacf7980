"""Checks of the training of a reward model before it starts; readable without torch."""

from __future__ import annotations

from nemotron_style.runtime.step.compiled import CompiledJob, JobSite
from nemotron_style.steps.blocks.preflight.job import Job, Rows, compile_checks
from nemotron_style.steps.blocks.preflight.memory import Load
from nemotron_style.steps.reward.regression.config import Config


def compile_job(config: Config, site: JobSite) -> CompiledJob:
    """Notes on what the run takes, and all that is wrong with it."""
    trainer, model = config.trainer, config.model
    job = Job(
        load=Load(
            half=trainer.half,
            tensor=model.tensor_model_parallel_size,
            pipeline=model.pipeline_model_parallel_size,
            spread_optimizer=model.optim.distributed,
            activations=model.activations,
            pass_rows=model.micro_batch_size,
        ),
        machines=trainer.num_nodes,
        processes=trainer.devices,
        batch=("model.global_batch_size", model.global_batch_size),
        rows={
            "data": Rows(
                "ratings",
                needed=0 if model.data.sample else model.global_batch_size,
                key="model.global_batch_size",
                fix="lower it, or set model.data.sample=true and max_steps to repeat rows",
                settings=model.data,
            ),
            "validation": Rows("ratings", settings=model.data),
        },
        longest=lambda limit: min(limit, model.data.seq_length or limit),
        tokens=model.data.chat_prompt_tokens,
    )
    return compile_checks(job, site)
