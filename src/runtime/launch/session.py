"""The processes of a job on this machine: how they are started, asked to stop, and ended.

A job runs in a session of its own, and whatever it starts carries its mark, a variable that names
the attempt's folder.
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
from nemotron_style.runtime.run.attempt import ATTEMPT_VARIABLE, CHILD, MARK, Attempt
from nemotron_style.runtime.run.plan import Plan

SUPERVISOR_LOG = "supervisor.log"
ROUNDS_OF_KILLING = 5


def start_supervisor(argv: Sequence[str], attempt: Attempt, plan: Plan) -> subprocess.Popen[bytes]:
    """Start it, from the copy of the code if there is one; nothing of this process hangs on it."""
    environment = dict(os.environ)
    environment.pop(MARK, None)  # handed over by another job, it is no part of that one
    if plan.snapshot:
        paths = [plan.snapshot.path, environment.get("PYTHONPATH", "")]
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    return start_session(
        argv,
        log=attempt.path / SUPERVISOR_LOG,
        environment=environment,
        name=lambda: attempt.update(launcher=identify_process(os.getpid())),
    )


def start_child(
    argv: Sequence[str], attempt: Attempt, plan: Plan | None = None
) -> subprocess.Popen[bytes]:
    """Start the job itself."""
    variable, _, value = attempt.mark.partition("=")
    return start_session(
        argv,
        log=attempt.log,
        environment={**os.environ, ATTEMPT_VARIABLE: str(attempt.number), variable: value},
        name=lambda: write_json(attempt.path / CHILD, identify_process(os.getpid())),
    )


def start_session(
    argv: Sequence[str], *, log: Path, environment: Mapping[str, str], name: Callable[[], None]
) -> subprocess.Popen[bytes]:
    """Start a command in a session of its own; ``name`` is called by the new process.

    It writes itself down before it becomes the command, so that nothing ever runs that nobody
    knows of, wherever this process is killed.
    """
    with open(log, "ab") as output:
        return subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env=environment,
            preexec_fn=name,
        )


def stop_job(attempt: Attempt) -> None:
    """Have the job save and stop: by a file that its worker looks for, and SIGTERM.

    Where torchrun is above the worker it gets no signal: it would kill what has not saved within
    half a minute. Before there is a worker, and after it, there is nothing to save: all get it.
    """
    attempt.request_stop("cancelled")
    owner = attempt.owner or {}
    if is_alive(owner):
        if owner["leader"] == owner["pid"]:
            send_signal(owner["pid"], signal.SIGTERM)
        return
    for pid in find_marked(attempt.mark):
        send_signal(pid, signal.SIGTERM)


def kill_job(attempt: Attempt) -> None:
    """SIGKILL for everything that belongs to an attempt."""
    if kill_container(attempt.job):
        return  # the engine's client ends by itself, and tidies up
    for one in (attempt.child, attempt.owner or {}):
        if is_alive(one):
            kill_family(one["pid"])
    for _ in range(ROUNDS_OF_KILLING):  # what was just being born is found the next time
        marked = find_marked(attempt.mark)
        for pid in marked:
            send_signal(pid, signal.SIGKILL)
        if not marked:
            return


def send_signal(pid: int, number: int) -> None:
    """Signal a process that may be gone already."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(pid, number)
