"""What every way of launching has in common.

*compile* turns a plan into a request, *render* shows it, *submit* writes exactly what was shown
and starts it. Only *submit* has a side effect.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from nemotron_style.runtime.atomic import write_text
from nemotron_style.runtime.errors import Problem, ProfileError, StepFailed, StepsError
from nemotron_style.runtime.run.attempt import Attempt
from nemotron_style.runtime.run.folder import RunFolder
from nemotron_style.runtime.run.plan import Plan
from nemotron_style.runtime.run.snapshot import write_snapshot
from nemotron_style.runtime.run.state import FAILED, JobState


@dataclass(frozen=True)
class Request:
    """A plan in one backend's words.

    ``attempt`` is the number that this submission will have among the run's attempts; ``files``
    are exact texts by path relative to the run's folder, plan.json and launch.sh at least;
    ``argv`` is the command that submits them.
    """

    plan: Plan
    attempt: int
    files: Mapping[str, str]
    argv: tuple[str, ...]

    def render(self) -> str:
        """Everything that submitting it would write and execute."""
        folder = f"runs/{self.plan.run_id}"
        parts = [f"# {folder}/{name}\n{text.rstrip()}\n" for name, text in self.files.items()]
        return "\n".join([*parts, self.show_command()])

    def show_command(self) -> str:
        """The lines after the files: what is executed."""
        return f"$ {shlex.join(self.argv)}\n"


@dataclass(frozen=True)
class JobHandle:
    """One submitted attempt of a run; ``run_dir`` as the command line sees it."""

    executor: str
    run_dir: Path
    attempt: int


class Launcher(Protocol):
    """One backend."""

    def compile(self, plan: Plan, *, attempt: int = 1) -> Request:
        """Pure. Raises ``ProfileError`` for what this backend cannot do or hold."""

    def check(self, plan: Plan) -> Iterator[Problem]:
        """What stands in the way, before anything is submitted; reads the world, changes nothing.

        ``plan`` is one that this launcher has compiled.
        """

    def submit(self, request: Request, *, after: Sequence[JobHandle] = ()) -> JobHandle:
        """Write exactly what was rendered, and start it once ``after`` have completed.

        An attempt that lives already is followed instead. When the backend refuses, the attempt
        is closed with the reason and an error is raised.
        """

    def state(self, handle: JobHandle) -> JobState:
        """The state of the job; reads only."""

    def states(self, handles: Sequence[JobHandle]) -> list[JobState]:
        """The states of many, for one question to a backend and one wait for one that is down."""

    def logs(self, handle: JobHandle, *, node: int = 0) -> Iterator[str]:
        """Text of the log as it appears, until the job is over; "" when nothing is new yet."""

    def cancel(self, handle: JobHandle, *, force: bool = False) -> None:
        """Ask it to save and stop; with ``force``, end it at once."""


def begin_attempt(request: Request) -> Attempt | None:
    """Claim the attempt, and write code and files: how every submission starts.

    None when another attempt lives. Raises ``ProfileError`` for secrets that are missing here.
    """
    plan = request.plan
    check_secrets(plan)
    folder = RunFolder(plan.record_dir)
    attempt = folder.claim_attempt(request.attempt, executor=plan.executor, detached=plan.detached)
    if attempt is None:
        return None
    try:
        if plan.snapshot and plan.records is None:
            write_snapshot(plan.snapshot, plan.entrypoint, plan.config_class)
        for name, text in request.files.items():
            write_text(folder.path / name, text)
    except (OSError, StepsError) as error:
        attempt.close(FAILED, error=f"not submitted: {error}")
        raise
    return attempt


def attach(plan: Plan) -> JobHandle:
    """A handle of the newest attempt, whoever started it."""
    folder = RunFolder(plan.record_dir)
    last = folder.last_attempt
    if last is None:
        raise StepFailed(f"{folder.run_id} has no attempt to follow; run the same command again")
    return handle_of(last)


def attempt_of(handle: JobHandle) -> Attempt:
    """The attempt that a handle names."""
    return Attempt(handle.run_dir / "attempts" / str(handle.attempt))


def handle_of(attempt: Attempt) -> JobHandle:
    """What a launcher needs to find an attempt again."""
    return JobHandle(attempt.executor, attempt.run_dir, attempt.number)


def check_secrets(plan: Plan) -> None:
    """Raise ``ProfileError`` naming the secrets that the environment does not have.

    Not where the job reads them from a file of its own, or the workspace keeps them.
    """
    if plan.executor == "lepton" or "secrets_file" in plan.site:
        return
    missing = [name for name in plan.secrets if name not in os.environ]
    if missing:
        what = f"not in the environment: {', '.join(missing)}"
        fix = "export them, or take them out of the profile's secrets"
        raise ProfileError(Problem(where=plan.where, key="secrets", what=what, fix=fix))
