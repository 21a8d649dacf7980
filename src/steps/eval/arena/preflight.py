"""Checks of a comparison of two models before it starts; readable without torch."""

from __future__ import annotations

from nemotron_style.runtime.step.compiled import CompiledJob, JobSite
from nemotron_style.steps.blocks.preflight.job import Job, Rows, compile_checks, compile_together
from nemotron_style.steps.blocks.preflight.memory import Load
from nemotron_style.steps.eval.arena.config import Config

MODELS = ("model", "baseline")


def compile_job(config: Config, site: JobSite) -> CompiledJob:
    """Notes on what the run takes, and all that is wrong with it; one model is held at a time."""
    sampling = config.sampling
    load = Load(half=config.trainer.half, trains=False, sampled_rows=sampling.max_rows)
    jobs = [
        Job(
            load=load,
            model=slot,
            rows={"prompts": Rows("prompts", settings=config.data)},
            new_tokens=lambda limit: min(limit, sampling.max_new_tokens),
            tokens=config.model.data.chat_prompt_tokens,
            keys=("trainer.precision", "sampling.max_rows"),
            memory_fix="lower sampling.max_rows, or sample on a machine with more memory",
        )
        for slot in MODELS
        if slot in site.inputs
    ]
    return compile_together(*(compile_checks(job, site) for job in jobs))
