"""Checks of a measure of steerability before it starts; readable without torch."""

from __future__ import annotations

from nemotron_style.runtime.step.compiled import CompiledJob, JobSite
from nemotron_style.steps.blocks.preflight.evaluation import compile_evaluation
from nemotron_style.steps.blocks.preflight.memory import Load
from nemotron_style.steps.eval.steerability.config import Config

MODELS = ("model", "baseline", "attribute")


def compile_job(config: Config, site: JobSite) -> CompiledJob:
    """Notes on what the run takes, and all that is wrong with it; one model is held at a time,
    beside the one that names attributes.
    """
    sampling = config.sampling
    load = Load(
        half=config.trainer.half,
        trains=False,
        sampled_rows=sampling.max_rows,
        frozen=int("attribute" in site.inputs),
    )
    return compile_evaluation(
        site,
        MODELS,
        load=load,
        data=config.data,
        tokens=config.model.data.chat_prompt_tokens,
        max_new_tokens=sampling.max_new_tokens,
    )
