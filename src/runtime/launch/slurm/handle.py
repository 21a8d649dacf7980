"""The job of an attempt, and whether it is the one that this machine's Slurm has under its number.

Every cluster counts its jobs from 1. Where a second one sees the same store, a number alone names
somebody else's job, and a number that is not known there says nothing. So ``job.json`` also keeps
the cluster, its controller, and the job's name and work directory, from before it is submitted.
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, replace
from typing import Any

from nemotron_style.runtime.launch.slurm.client import Answer, ShownJob
from nemotron_style.runtime.run.attempt import Attempt
from nemotron_style.runtime.run.plan import Plan

EXECUTOR = "slurm"
NUMBER = re.compile(r"[0-9]+")


@dataclass(frozen=True)
class SlurmHandle:
    """What ``job.json`` says; what was not known then, or in an older store, is empty.

    ``controller`` is the host and port of slurmctld. There is no ``id`` while it is submitted.
    """

    id: str = ""
    cluster: str = ""
    controller: str = ""
    name: str = ""
    folder: str = ""

    def find(self, answer: Answer) -> ShownJob | None:
        """The job among those that Slurm shows; another one with its number is not it."""
        shown = answer.jobs.get(self.id)
        if shown is None or self.is_elsewhere(answer):
            return None
        same = shown.name == self.name and self.folder in ("", shown.folder)
        return shown if same else None

    def is_elsewhere(self, answer: Answer) -> bool:
        """Whether it is certain that another cluster answered."""
        return bool(self.cluster and answer.cluster and self.cluster != answer.cluster)

    def explain_doubt(self, answer: Answer) -> str:
        """Why this machine's Slurm cannot speak for the job; "" when it can."""
        what = f"job {self.id}" if self.id else "its job"
        if self.is_elsewhere(answer):
            return f"{what} is on cluster {self.cluster}, and Slurm here is {answer.cluster}"
        if self.find(answer) is not None:
            return ""
        if self.controller and answer.controller and self.controller != answer.controller:
            return f"{what} is with {self.controller}, and Slurm here is {answer.controller}"
        if self.cluster and not answer.cluster:
            return f"{what} is on cluster {self.cluster}, and Slurm here does not say which it is"
        other = answer.jobs.get(self.id)
        if other is not None and not self.controller:
            return f"{what} of Slurm here is another one ({other.name})"
        return ""


def plan_handle(plan: Plan, answer: Answer) -> SlurmHandle:
    """The handle of a job that is about to be submitted."""
    return SlurmHandle(
        cluster=answer.cluster,
        controller=answer.controller,
        name=plan.run_id,
        folder=str(plan.run_dir),
    )


def read_handle(attempt: Attempt) -> SlurmHandle:
    """The handle that an attempt's folder holds; what is no number of a job is none."""
    job = attempt.job
    texts = {key: str(job[key]) for key in SlurmHandle.__dataclass_fields__ if job.get(key)}
    handle = replace(SlurmHandle(name=attempt.run_dir.name), **texts)
    # It becomes a word of commands.
    return handle if NUMBER.fullmatch(handle.id) else replace(handle, id="")


def write_handle(handle: SlurmHandle) -> dict[str, Any]:
    """What ``job.json`` says."""
    return {"executor": EXECUTOR, **{key: text for key, text in asdict(handle).items() if text}}
