"""What NeMo-RL is given: rows, policy, folders, and the variables of its file that name them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nemotron_style.runtime.errors import InputError, Problem, raise_all
from nemotron_style.runtime.step.context import StepContext
from nemotron_style.steps.rl.rlhf.nemo_rl.job.policy_source import (
    HF_TWIN,
    PolicySource,
    find_policy,
)
from nemotron_style.steps.rl.rlhf.nemo_rl.job.rows import (
    AGENT,
    PreparedRows,
    prepare_rows,
    prepare_texts,
)
from nemotron_style.steps.rl.rlhf.nemo_rl.job.settings import Settings
from nemotron_style.steps.rl.rlhf.nemo_rl.job_variables import CONFIG_FILE, JobVariable
from nemotron_style.steps.rl.rlhf.nemo_rl.rules.check import check_rows
from nemotron_style.steps.rl.rlhf.nemo_rl.rules.facts import Facts
from nemotron_style.steps.rl.rlhf.nemo_rl.rules.rows import read_row_facts
from nemotron_style.steps.rl.rlhf.nemo_rl.version import Version

SLOTS = {
    JobVariable.POLICY_MODEL: "model",
    JobVariable.PRETRAINED: "model",
    JobVariable.PRETRAINED_FORMAT: "model",
    JobVariable.TRAIN_DATA: "prompts",
    JobVariable.VALIDATION_DATA: "validation",
}
"""The input that gives a variable its value."""


@dataclass(frozen=True)
class JobFolders:
    """Where a run keeps what NeMo-RL reads and writes; the same for all attempts.

    ``checkpoints`` lies where the run's own would: it goes when the run is complete.
    """

    run_dir: Path

    @property
    def root(self) -> Path:
        return self.run_dir / "nemo_rl"

    @property
    def config(self) -> Path:
        return self.root / CONFIG_FILE

    @property
    def data(self) -> Path:
        return self.root / "data"

    @property
    def logs(self) -> Path:
        return self.root / "logs"

    @property
    def aside(self) -> Path:
        """What a crash left of checkpoints; it is never read again."""
        return self.checkpoints / "aside"

    @property
    def checkpoints(self) -> Path:
        return self.run_dir / "checkpoints" / "nemo_rl"


@dataclass(frozen=True)
class Prepared:
    """The environment for the script, what the run is made of, and the rows of an epoch."""

    variables: Mapping[str, str]
    made_of: Mapping[str, str | None]
    rows: int
    policy: PolicySource
    notes: tuple[str, ...] = ()
    folders: JobFolders = field(default_factory=lambda: JobFolders(Path()))


def prepare(
    ctx: StepContext, settings: Settings, version: Version, agent: str | Mapping[str, Any] | None
) -> Prepared:
    """Write the file and the rows into the run's folder.

    Raises InputError, before NeMo-RL is started, for inputs that it would not take, and for
    variables of the file that nothing fills.
    """
    folders = JobFolders(ctx.run_dir)
    for folder in (folders.data, folders.logs, folders.checkpoints):
        folder.mkdir(parents=True, exist_ok=True)
    folders.config.write_text(settings.text, encoding="utf-8")
    train = _prepare_slot(ctx, "prompts", settings, version, agent)
    validation = _prepare_slot(ctx, "validation", settings, version, agent)
    raise_all(InputError, list(_find_bad_rows(settings, version, train, validation)))
    policy = find_policy(ctx.optional_input("model"), settings.checkpoint_format)
    variables = {
        JobVariable.CHECKPOINTS: str(folders.checkpoints),
        JobVariable.LOGS: str(folders.logs),
        **policy.variables,
    }
    if train:
        variables[JobVariable.TRAIN_DATA] = str(train.path)
    if validation:
        variables[JobVariable.VALIDATION_DATA] = str(validation.path)
    check_variables(settings, variables)
    made_of = {
        "train data": train.digest if train else None,
        "validation data": validation.digest if validation else None,
        "model": policy.digest or settings.get("policy.model_name"),
        "NeMo-RL": str(version),
        "config": settings.digest,
    }
    rows = train.rows if train else 0
    notes = [note for each in (train, validation) if each for note in each.notes]
    if policy.hf_folder and JobVariable.POLICY_MODEL not in settings.variables:
        name = settings.get("policy.model_name")
        notes.append(f"policy.model_name is {name}; the checkpoint has its own in {HF_TWIN}/")
    return Prepared(variables, made_of, rows, policy, tuple(notes), folders)


def _find_bad_rows(
    settings: Settings,
    version: Version,
    train: PreparedRows | None,
    validation: PreparedRows | None,
) -> Iterator[Problem]:
    """What breaks a run in the files as NeMo-RL will read them."""
    paths = [prepared.path if prepared else None for prepared in (train, validation)]
    rows = read_row_facts(*paths, are_final=settings.uses_gym)
    return check_rows(settings.written, Facts(version, rows=rows))


def check_variables(settings: Settings, variables: Mapping[str, str]) -> None:
    """Raise InputError with every variable of the file that nothing sets."""
    missing = settings.variables - {str(name) for name in variables} - set(os.environ)
    problems = [
        Problem(
            where=CONFIG_FILE,
            key=name,
            what="is not set, and NeMo-RL would not start without it",
            fix=f"give the input {SLOTS[JobVariable(name)]!r}"
            if name in set(SLOTS)
            else "name it in the profile's env or secrets",
        )
        for name in sorted(missing)
    ]
    raise_all(InputError, problems)


def _prepare_slot(
    ctx: StepContext,
    slot: str,
    settings: Settings,
    version: Version,
    agent: str | Mapping[str, Any] | None,
) -> PreparedRows | None:
    """The rows of a slot, None where it is empty."""
    artifact = ctx.optional_input(slot)
    if artifact is None:
        return None
    data = JobFolders(ctx.run_dir).data
    if not settings.uses_gym:
        return prepare_texts(artifact.path, data, slot=slot)
    return prepare_rows(
        artifact.path,
        data,
        slot=slot,
        version=version,
        agent=agent or AGENT,
        most_tokens=settings.get("policy.generation.max_new_tokens"),
    )
