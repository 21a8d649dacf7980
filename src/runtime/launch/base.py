"""What every way of launching has in common.

*compile* turns a plan into a request, *render* shows it, *submit* writes exactly what was shown
and starts it. Only *submit* has a side effect.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from nemotron_style.runtime.atomic import write_text
from nemotron_style.runtime.errors import Problem, ProfileError, StepFailed, StepsError, raise_all
from nemotron_style.runtime.run.attempt import ATTEMPT_VARIABLE, PARENT_VARIABLE, Attempt
from nemotron_style.runtime.run.folder import RunFolder
from nemotron_style.runtime.run.plan import Plan
from nemotron_style.runtime.run.snapshot import write_snapshot
from nemotron_style.runtime.run.state import FAILED, JobState

WORKER = "nemotron_style.runtime.worker"
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


class Request(Protocol):
    """A plan in one backend's words: the files of the run directory, and the command."""

    @property
    def plan(self) -> Plan: ...

    @property
    def attempt(self) -> int:
        """The number that this submission will have among the run's attempts."""

    @property
    def files(self) -> Mapping[str, str]:
        """Exact text by path relative to the run directory; plan.json and launch.sh at least."""

    @property
    def argv(self) -> tuple[str, ...]: ...

    def render(self) -> str:
        """Everything that submitting it would write and execute."""


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

        An attempt that lives already is taken hold of instead. When the backend refuses, the
        attempt is closed with the reason and an error is raised.
        """

    def state(self, handle: JobHandle) -> JobState:
        """How the job stands; reads only."""

    def logs(self, handle: JobHandle, *, node: int = 0) -> Iterator[str]:
        """Text of the log as it appears, until the job is over; "" when nothing is new yet."""

    def cancel(self, handle: JobHandle, *, force: bool = False) -> None:
        """Ask it to save and stop; with ``force``, end it at once."""


def begin_attempt(request: Request) -> Attempt | None:
    """The start that every submission has in common: claim the attempt, write code and files.

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
            write_snapshot(plan.snapshot, plan.entrypoint)
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
    return JobHandle(last.executor, folder.path, last.number)


def attempt_of(handle: JobHandle) -> Attempt:
    """The folder of an attempt by its handle."""
    return Attempt(Path(handle.run_dir, "attempts", str(handle.attempt)))


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
        raise ProfileError(
            Problem(where=f"profile {plan.profile}", key="secrets", what=what, fix=fix)
        )


def render_files(files: Mapping[str, str], argv: tuple[str, ...], *, run_id: str) -> str:
    """The files under their names, then the command."""
    parts = [f"# runs/{run_id}/{name}\n{text.rstrip()}\n" for name, text in files.items()]
    return "\n".join([*parts, f"$ {shlex.join(argv)}\n"])


def exec_line(command: str) -> list[str]:
    """End a script by becoming ``command``."""
    return [f"exec {command}"]


def record_exit(command: str, *, folder: str) -> list[str]:
    """End a script by running ``command``, and leave its exit code beside the attempt's records.

    Where many machines take part, this is how the culprit is told from those that it took along.
    Signals go to every process of the job; this shell survives them to write the code down.
    """
    return [
        "trap : TERM USR1",
        "code=0",
        f"{command} || code=$?",
        f'echo "$code" > {folder}/"${ATTEMPT_VARIABLE}"/"exit-$NODE_RANK"',
        'exit "$code"',
    ]


def write_script(
    plan: Plan, *, seat: Sequence[str] = (), run: Callable[[str], list[str]] = exec_line
) -> str:
    """``launch.sh``: go to the work directory, export the environment, run the
    profile's setup lines, become the worker.

    ``seat`` are lines that say which of the machines this is: they set ``NODE_RANK`` and, for more
    than one, ``MASTER_ADDR`` and ``MASTER_PORT``. ``run`` turns the command into the last lines.

    Raises ``ProfileError`` for environment variables that a shell cannot hold.
    """
    raise_all(ProfileError, [*_check_environment(plan)])
    lines = [
        "#!/usr/bin/env bash",
        "set -euo pipefail",
        *seat,
        f"cd {shlex.quote(plan.workdir)}",
        *write_exports(plan),
        *plan.setup,
        *(line for name in plan.services for line in start_service(plan, name)),
        *run(write_command(plan)),
    ]
    return "\n".join(lines) + "\n"


def write_exports(plan: Plan) -> list[str]:
    """The profile's environment, the code, the secrets, and defaults for threads."""
    exports = [f"export {name}={shlex.quote(value)}" for name, value in sorted(plan.env.items())]
    if plan.snapshot:
        path = shlex.quote(plan.snapshot.path)
        exports.append(f'export PYTHONPATH={path}"${{PYTHONPATH:+:$PYTHONPATH}}"')
    exports += read_secrets(plan)
    if "OMP_NUM_THREADS" not in plan.env:
        # Every process would otherwise start a thread on each core, and they would fight.
        share = f"(n = $(nproc) / {plan.processes + len(plan.services)}) > 0 ? n : 1"
        exports.append(f'export OMP_NUM_THREADS="${{OMP_NUM_THREADS:-$(({share}))}}"')
    if "GOMP_SPINCOUNT" not in plan.env:
        # Idle threads of GNU OpenMP wait by spinning. By default they spin so long that two runs
        # on the same cores are many times slower instead of half as fast; where they hardly spin
        # at all, a small model alone gains nothing from its second thread.
        exports.append('export GOMP_SPINCOUNT="${GOMP_SPINCOUNT:-10000}"')
    if "MKL_CBWR" not in plan.env:
        # Without it MKL's sums depend on where arrays lie in memory once two threads share a
        # product, and a run that goes on would differ in its last bits. On processors of other
        # makers the setting would select the slowest code, and the sums are equal without it.
        setting = 'export MKL_CBWR="${MKL_CBWR:-AUTO,STRICT}"'
        exports.append(f"if grep -qs GenuineIntel /proc/cpuinfo; then {setting}; fi")
    return exports


def read_secrets(plan: Plan) -> list[str]:
    """Lines that take the named secrets, and no others, out of a file that only its owner reads."""
    path = plan.site.get("secrets_file")
    if not path or not plan.secrets:
        return []
    names = "|".join(f"{name}=*" for name in plan.secrets)
    refusal = f"echo {shlex.quote(f'{path}: must be there with mode 600')} >&2; exit 2"
    return [
        f"secrets={shlex.quote(path)}",
        f'[ "$(stat -Lc %a "$secrets")" = 600 ] || {{ {refusal}; }}',
        'while IFS= read -r line || [ -n "$line" ]; do',
        f'  case "$line" in {names}) export "${{line?}}" ;; esac',
        'done < "$secrets"',
    ]


def start_service(plan: Plan, name: str) -> list[str]:
    """Lines that start a service beside the step, on its first machine.

    The step asks it to stop; and it ends by itself once the process that this shell becomes, or
    this shell, is gone.
    """
    folder = shlex.quote(str(plan.services[name].run_dir / "attempts"))
    command = shlex.join([plan.python, "-m", WORKER, str(plan.run_dir / "plan.json"), name])
    return [
        'if [ "${NODE_RANK:-0}" = 0 ]; then',
        f'  beside={folder}/"${ATTEMPT_VARIABLE}"',
        '  mkdir -p "$beside"',
        f'  {PARENT_VARIABLE}=$$ {command} >"$beside/log-0.txt" 2>&1 </dev/null &',
        "fi",
    ]


def write_command(plan: Plan) -> str:
    """The command that carries out a plan on one of its machines, as shell text."""
    target = [WORKER, str(plan.run_dir / "plan.json")]
    if plan.launch != "torchrun" or plan.processes * plan.nodes == 1:
        return shlex.join([plan.python, "-m", *target])
    start = shlex.join([plan.python, "-m", "torch.distributed.run"])
    meeting = "--standalone"
    if plan.nodes > 1:
        # Static rendezvous: rank 0 is on the machine that the address names, always.
        meeting = f'--nnodes {plan.nodes} --node-rank "$NODE_RANK"'
        meeting += ' --master-addr "$MASTER_ADDR" --master-port "$MASTER_PORT"'
    return f"{start} {meeting} --nproc-per-node {plan.processes} {shlex.join(['-m', *target])}"


def _check_environment(plan: Plan) -> Iterator[Problem]:
    if plan.snapshot and ":" in plan.snapshot.path:
        what = "a job finds its code by PYTHONPATH, which cannot hold a path with a colon"
        fix = "choose another store with $NEMOTRON_STYLE_HOME"
        yield Problem(where=f"store {plan.store}", what=what, fix=fix)
    for name, value in plan.env.items():
        if not _VARIABLE.fullmatch(name):
            what = "is not a name of an environment variable"
            yield Problem(where=f"profile {plan.profile}", key="env", what=what, got=repr(name))
        if "\0" in value:
            what = "holds a null character, which no environment can"
            yield Problem(where=f"profile {plan.profile}", key=f"env.{name}", what=what)
