"""The processes of a job on this machine: how they are started, asked to stop, and killed.

A job runs in a session of its own, and every process that it starts inherits its mark, a variable
that names the attempt's folder.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from nemotron_style.runtime.atomic import write_json
from nemotron_style.runtime.launch.container import kill_container
from nemotron_style.runtime.process import find_marked, identify_process, is_alive, kill_family
from nemotron_style.runtime.run.attempt import ATTEMPT_VARIABLE, CHILD, Attempt
from nemotron_style.runtime.run.plan import Plan
from nemotron_style.runtime.shell_environment import clean_environment

SUPERVISOR_LOG = "supervisor.log"
ROUNDS_OF_SIGNALS = 5


def start_supervisor(argv: Sequence[str], attempt: Attempt, plan: Plan) -> subprocess.Popen[bytes]:
    """Start a detached attempt's supervisor, from the copy of the code if there is one."""
    environment = clean_environment(os.environ)
    if plan.snapshot:
        paths = [plan.snapshot.path, environment.get("PYTHONPATH", "")]
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    return start_session(
        argv,
        log=attempt.path / SUPERVISOR_LOG,
        environment=environment,
        register=lambda: attempt.update(launcher=identify_process(os.getpid())),
    )


def start_child(
    argv: Sequence[str], attempt: Attempt, plan: Plan | None = None
) -> subprocess.Popen[bytes]:
    """Start the job itself, with the variables that identify its attempt."""
    variable, _, value = attempt.mark.partition("=")
    own = {ATTEMPT_VARIABLE: str(attempt.number), variable: value}
    return start_session(
        argv,
        log=attempt.log,
        environment=clean_environment(os.environ) | own,
        register=lambda: write_json(attempt.path / CHILD, identify_process(os.getpid())),
    )


def start_session(
    argv: Sequence[str], *, log: Path, environment: Mapping[str, str], register: Callable[[], None]
) -> subprocess.Popen[bytes]:
    """Start a command in a session of its own.

    The new process calls ``register``, which records its id, before it becomes the command: so
    nothing runs unknown, wherever this process is killed.
    """
    with open(log, "ab") as output:
        return subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env=environment,
            preexec_fn=register,
        )


def stop_job(attempt: Attempt) -> None:
    """Have the job save and stop: by a file that its worker looks for, and SIGTERM."""
    attempt.request_stop("cancelled")
    told: set[int] = set()
    for _ in range(ROUNDS_OF_SIGNALS):  # a process that was just being born is found next time
        pids = find_stoppable(attempt) - told
        if not pids:
            return
        for pid in pids:
            send_signal(pid, signal.SIGTERM)
        told |= pids


def find_stoppable(attempt: Attempt) -> set[int]:
    """The processes of a job that a SIGTERM may go to: none that would lose what it has."""
    owner = attempt.owner or {}
    if not is_alive(owner):  # before there is a worker, and after it, there is nothing to save
        return set(find_marked(attempt.mark))
    # torchrun is above a worker, and would kill what has not saved in half a minute
    return {owner["pid"]} if owner["leader"] == owner["pid"] else set()


def kill_job(attempt: Attempt) -> None:
    """SIGKILL for everything that belongs to an attempt."""
    if kill_container(attempt.job):
        return  # the engine's client ends by itself, and tidies up
    for process in (attempt.child, attempt.owner or {}):
        if is_alive(process):
            kill_family(process["pid"])
    for _ in range(ROUNDS_OF_SIGNALS):  # a process that was just being born is found next time
        marked = find_marked(attempt.mark)
        for pid in marked:
            send_signal(pid, signal.SIGKILL)
        if not marked:
            return


def send_signal(pid: int, number: int) -> None:
    """Signal a process that may be gone already."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(pid, number)
