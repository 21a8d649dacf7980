"""Checks of a merge before it starts; readable without torch."""

from __future__ import annotations

from nemotron_style.runtime.errors import Problem
from nemotron_style.runtime.step.compiled import CompiledJob, JobSite
from nemotron_style.steps.blocks.preflight.adapter_source import check_adapter
from nemotron_style.steps.blocks.preflight.model_source import check_model
from nemotron_style.steps.convert.merge_lora.config import Config


def compile_job(config: Config, site: JobSite) -> CompiledJob:
    """Notes on base and adapter, and all that is wrong with them, as far as small files say."""
    notes: tuple[str, ...] = ()
    problems: list[Problem] = []
    model, adapter = site.files.get("model"), site.files.get("adapter")
    if model and "model" in site.outside:
        source, found = check_model(model)
        notes, problems = source.notes, [*found]
    if adapter:
        own, found = check_adapter(adapter, model or site.origins.get("model"))
        notes, problems = (*notes, *own), [*problems, *found]
    return CompiledJob(notes=notes, problems=tuple(problems))
