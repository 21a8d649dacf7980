"""Checks of a chat model as a service before it starts; readable without torch."""

from __future__ import annotations

from nemotron_style.runtime.step.compiled import CompiledJob, JobSite
from nemotron_style.steps.blocks.preflight.job import Job, compile_checks
from nemotron_style.steps.blocks.preflight.memory import Load
from nemotron_style.steps.judge.serve.config import Config


def compile_job(config: Config, site: JobSite) -> CompiledJob:
    """Notes on what the service takes, and all that is wrong with it."""
    half = config.dtype == "bfloat16"
    job = Job(
        load=Load(half=half, trains=False, cache_tokens=config.batch_tokens),
        chats=False,
        keys=("dtype", "batch_tokens"),
        memory_fix="lower batch_tokens, or serve on a machine with more memory",
    )
    return compile_checks(job, site)
