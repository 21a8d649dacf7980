"""Checks of an evaluation before it starts: it samples from several models, one after the other."""

from __future__ import annotations

from collections.abc import Sequence

from nemotron_style.runtime.step.compiled import CompiledJob, JobSite
from nemotron_style.steps.blocks.data.chat_format import ChatPromptTokens
from nemotron_style.steps.blocks.preflight.job import Job, Rows, compile_checks
from nemotron_style.steps.blocks.preflight.memory import Load
from nemotron_style.steps.blocks.settings.row_config import RowReading


def compile_evaluation(
    site: JobSite,
    models: Sequence[str],
    *,
    load: Load,
    data: RowReading,
    tokens: ChatPromptTokens | None,
    max_new_tokens: int,
) -> CompiledJob:
    """Notes on what the run takes, and all that is wrong with it.

    ``models`` are the slots of those that may be sampled from, each of which takes ``load``.
    """
    jobs = [
        compile_checks(
            Job(
                load=load,
                model=slot,
                rows={"prompts": Rows("prompts", settings=data)},
                new_tokens=lambda limit: min(limit, max_new_tokens),
                tokens=tokens,
                keys=("trainer.precision", "sampling.max_rows"),
                memory_fix="lower sampling.max_rows, or sample on a machine with more memory",
            ),
            site,
        )
        for slot in models
        if slot in site.inputs
    ]
    return CompiledJob(
        notes=tuple(dict.fromkeys(note for job in jobs for note in job.notes)),
        problems=tuple(dict.fromkeys(problem for job in jobs for problem in job.problems)),
    )
