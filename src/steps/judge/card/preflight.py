"""Checks of the judgement of a judge before it starts; readable without torch."""

from __future__ import annotations

from nemotron_style.runtime.step.compiled import CompiledJob, JobSite
from nemotron_style.steps.blocks.preflight.job import Job, Rows, compile_checks
from nemotron_style.steps.blocks.preflight.memory import Load
from nemotron_style.steps.judge.card.config import Config


def compile_job(config: Config, site: JobSite) -> CompiledJob:
    """Notes on what the run takes, and all that is wrong with it."""
    half = config.dtype == "bfloat16"
    job = Job(
        load=Load(half=half, trains=False, cache_tokens=config.batch_tokens),
        rows={"comparisons": Rows(None, settings=config.data)},
        chats=False,
        keys=("dtype", "batch_tokens"),
        memory_fix="lower batch_tokens, or measure the judge on a machine with more memory",
    )
    return compile_checks(job, site)
