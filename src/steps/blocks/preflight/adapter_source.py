"""An adapter that is there already: what is wrong with it, and whether it is one of this base."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from nemotron_style.runtime.errors import ArtifactError, InputError, Problem
from nemotron_style.runtime.step.compiled import CompiledJob, JobSite
from nemotron_style.runtime.store.record import Artifact, load_artifact
from nemotron_style.steps.blocks.preflight.model_source import look_at_model
from nemotron_style.steps.blocks.settings.adapter_config import (
    check_adapter_files,
    read_adapter_config,
)
from nemotron_style.steps.blocks.settings.peft_config import (
    FOREIGN,
    check_adapter_base,
    read_adapter_base,
)


def check_adapter(path: Path, model: Path | None) -> tuple[tuple[str, ...], list[Problem]]:
    """Notes on the adapter in a folder, and all that is wrong with it, as its small files say.

    ``model`` is the folder of its base, where that is there already; it may be one of Hugging Face
    that will be converted first, whose digest is not known yet.
    """
    try:
        check_adapter_files(path)
        config, base = read_adapter_config(path), read_adapter_base(path)
    except InputError as error:
        return (), list(error.problems)
    note = f"adapter: rank {config.rank}, alpha {config.alpha:g}, of {path}"
    notes = (note,) if base else (note, FOREIGN)
    if model is None:
        return notes, []
    artifact = _recorded(model)
    return notes, check_adapter_base(
        path,
        digest=artifact and artifact.facts.get("weights_digest"),
        sizes=look_at_model(model).sizes,
        model=artifact.ref if artifact else str(model),
    )


def _recorded(path: Path) -> Artifact | None:
    """The artifact in a folder; None for one that is no artifact of a store."""
    try:
        return load_artifact(path)
    except (FileNotFoundError, ArtifactError):
        return None


def add_adapter(job: CompiledJob, site: JobSite) -> CompiledJob:
    """A training job with notes on the adapter that it goes on from, and all that is wrong."""
    if "adapter" not in site.files:
        return job
    model = site.files.get("model") or site.origins.get("model")
    notes, problems = check_adapter(site.files["adapter"], model)
    return replace(job, notes=(*job.notes, *notes), problems=(*job.problems, *problems))
