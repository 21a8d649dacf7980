"""Checks of a fine-tuning run before it starts; readable without torch."""

from __future__ import annotations

from nemotron_style.runtime.step.compiled import CompiledJob, JobSite
from nemotron_style.steps.blocks.preflight.adapter_source import add_adapter
from nemotron_style.steps.blocks.preflight.job import Job, Rows, compile_checks
from nemotron_style.steps.blocks.preflight.training import batch_rows, training_load
from nemotron_style.steps.sft.chat.config import Config, find_start_problems


def compile_job(config: Config, site: JobSite) -> CompiledJob:
    """Notes on what the run takes, and all that is wrong with it."""
    trainer, model, train = config.trainer, config.model, config.model.data.train_ds
    key, size = "model.data.train_ds.global_batch_size", train.global_batch_size
    continued = "model" in site.inputs
    new = None if continued else model.architecture
    job = Job(
        load=training_load(trainer, model, pass_rows=train.micro_batch_size, lora=model.peft.lora),
        machines=trainer.num_nodes,
        processes=trainer.devices,
        batch=(key, size),
        rows={
            "data": batch_rows(
                "training", model.data, key=key, size=size, sample=model.data.sample
            ),
            "validation": Rows("training", settings=model.data),
        },
        packed_batch=size if train.packed_sequence else 0,
        longest=lambda limit: config.longest("data", limit),
        tokens=model.data.chat_prompt_tokens,
        sizes=new.sizes(new.tokenizer_vocab_size) if new else None,
    )
    problems = find_start_problems(config, continued=continued)
    return add_adapter(compile_checks(job, site, *problems), site)
