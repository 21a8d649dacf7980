"""What every way of launching has in common.

*compile* turns a plan into a request, *render* shows it, *submit* writes exactly what was shown
and starts it. Only *submit* has a side effect.
"""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from nemotron_style.runtime.errors import Problem, ProfileError, raise_all
from nemotron_style.runtime.machine import count_cores
from nemotron_style.runtime.plan import Plan

WORKER = "nemotron_style.runtime.worker"
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


class Request(Protocol):
    """A plan in one backend's words: the files of the run directory, and the command."""

    @property
    def plan(self) -> Plan: ...

    @property
    def files(self) -> Mapping[str, str]:
        """Exact text by path relative to the run directory; plan.json and launch.sh at least."""

    @property
    def argv(self) -> tuple[str, ...]: ...

    def render(self) -> str:
        """Everything that submitting it would write and execute."""


@dataclass(frozen=True)
class JobHandle:
    """One submitted attempt of a run."""

    executor: str
    run_dir: Path
    attempt: int


@dataclass(frozen=True)
class JobState:
    """starting, running, completed, failed, stopped or died; the last four are final."""

    state: str
    exit_code: int | None = None
    error: str = ""

    @property
    def is_final(self) -> bool:
        return self.state not in ("starting", "running")


class Launcher(Protocol):
    """One backend."""

    def compile(self, plan: Plan) -> Request: ...

    def submit(self, request: Request) -> JobHandle: ...

    def state(self, handle: JobHandle) -> JobState: ...

    def logs(self, handle: JobHandle) -> Iterator[str]:
        """Text of the log as it appears, until the job is over; "" when nothing is new yet."""

    def cancel(self, handle: JobHandle, *, force: bool = False) -> None:
        """Ask it to save and stop; with ``force``, end it at once."""


def render_files(files: Mapping[str, str], argv: tuple[str, ...], *, run_id: str) -> str:
    """The files under their names, then the command."""
    parts = [f"# runs/{run_id}/{name}\n{text.rstrip()}\n" for name, text in files.items()]
    return "\n".join([*parts, f"$ {shlex.join(argv)}\n"])


def write_script(plan: Plan) -> str:
    """``launch.sh``: go to the work directory, export the environment, run the
    profile's setup lines, become the worker.

    Raises ``ProfileError`` for environment variables that a shell cannot hold.
    """
    raise_all(ProfileError, [*_check_environment(plan)])
    exports = [f"export {name}={shlex.quote(value)}" for name, value in sorted(plan.env.items())]
    if "OMP_NUM_THREADS" not in plan.env:
        # Every process would otherwise start a thread on each core, and they would fight.
        threads = max(1, count_cores() // plan.processes)
        exports.append(f'export OMP_NUM_THREADS="${{OMP_NUM_THREADS:-{threads}}}"')
    if "GOMP_SPINCOUNT" not in plan.env:
        # Idle threads of GNU OpenMP wait by spinning; where two runs share cores they would
        # take each other's time, and both come out many times slower instead of half as fast.
        exports.append('export GOMP_SPINCOUNT="${GOMP_SPINCOUNT:-1000}"')
    lines = [
        "#!/usr/bin/env bash",
        "set -euo pipefail",
        f"cd {shlex.quote(plan.workdir)}",
        *exports,
        *plan.setup,
        f"exec {shlex.join(worker_command(plan))}",
    ]
    return "\n".join(lines) + "\n"


def worker_command(plan: Plan) -> list[str]:
    """The command that carries out a plan on one machine."""
    target = [WORKER, str(plan.run_dir / "plan.json")]
    if plan.processes == 1:
        return [sys.executable, "-m", *target]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    return [*torchrun, "--nproc-per-node", str(plan.processes), "-m", *target]


def _check_environment(plan: Plan) -> Iterator[Problem]:
    for name, value in plan.env.items():
        if not _VARIABLE.fullmatch(name):
            what = "is not a name of an environment variable"
            yield Problem(where=f"profile {plan.profile}", key="env", what=what, got=repr(name))
        if "\0" in value:
            what = "holds a null character, which no environment can"
            yield Problem(where=f"profile {plan.profile}", key=f"env.{name}", what=what)
