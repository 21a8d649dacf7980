"""Checks of a conversion from Hugging Face before it starts; readable without torch."""

from __future__ import annotations

from nemotron_style.runtime.step.compiled import CompiledJob, JobSite
from nemotron_style.steps.blocks.preflight.model_source import check_model
from nemotron_style.steps.convert.hf_to_megatron.config import Config


def compile_job(config: Config, site: JobSite) -> CompiledJob:
    """A note on the model, and all that is wrong with it, as far as its small files say."""
    path = site.files.get("model")
    if path is None or "model" not in site.outside:
        return CompiledJob()
    source, problems = check_model(path, pad_to=config.model.make_vocab_size_divisible_by)
    return CompiledJob(notes=source.notes, problems=problems)
