"""Checks of a reward model as a service before it starts; readable without torch."""

from __future__ import annotations

from nemotron_style.runtime.errors import InputError
from nemotron_style.runtime.step.compiled import CompiledJob, JobSite
from nemotron_style.steps.blocks.checkpoint.hf_config import parse_sizes, read_settings
from nemotron_style.steps.blocks.preflight.job import Job, compile_checks
from nemotron_style.steps.blocks.preflight.memory import Load
from nemotron_style.steps.reward.serve.config import Config


def compile_job(config: Config, site: JobSite) -> CompiledJob:
    """A note on the memory that the service takes, and whether it can have it.

    What is wrong with the model, the service says when it begins.
    """
    path, sizes = site.files.get("model"), None
    if path is not None:
        try:  # of its class, which no model of language has, only the name of the family counts
            sizes = parse_sizes({**read_settings(path), "architectures": None}, path)
        except InputError:
            return CompiledJob()
    job = Job(
        load=Load(half=False, trains=False),
        model="rm_model_file",
        sizes=sizes,
        keys=("rm_model_file", "rm_model_file"),
        memory_fix="serve a smaller model, or on a machine with more memory",
    )
    return compile_checks(job, site)
