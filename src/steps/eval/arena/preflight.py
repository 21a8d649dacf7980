"""Checks of a comparison of two models before it starts; readable without torch."""

from __future__ import annotations

from nemotron_style.runtime.step.compiled import CompiledJob, JobSite
from nemotron_style.steps.blocks.preflight.evaluation import compile_evaluation
from nemotron_style.steps.blocks.preflight.memory import Load
from nemotron_style.steps.eval.arena.config import Config

MODELS = ("model", "baseline")


def compile_job(config: Config, site: JobSite) -> CompiledJob:
    """Notes on what the run takes, and all that is wrong with it; one model is held at a time."""
    sampling = config.sampling
    return compile_evaluation(
        site,
        MODELS,
        load=Load(half=config.trainer.half, trains=False, sampled_rows=sampling.max_rows),
        data=config.data,
        tokens=config.model.data.chat_prompt_tokens,
        max_new_tokens=sampling.max_new_tokens,
    )
