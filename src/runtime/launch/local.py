"""Runs on this machine, bare or in a container, each in a session of its own.

The job does not hang on the command line that started it: its output goes to a file that the
command line follows, and a command line that dies leaves the job running. The next same command
finds the live attempt and follows it.

A detached job has a supervisor (:mod:`nemotron_style.runtime.launch.supervisor`) instead, which
waits for the runs that it needs, starts it, and writes down how it ended.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from nemotron_style.runtime.atomic import write_json
from nemotron_style.runtime.errors import Problem, ProfileError, StepFailed, UsageError
from nemotron_style.runtime.launch import container, session
from nemotron_style.runtime.launch.base import (
    JobHandle,
    Request,
    attach,
    attempt_of,
    begin_attempt,
    handle_of,
)
from nemotron_style.runtime.launch.launch_sh import write_script
from nemotron_style.runtime.launch.log import follow_file
from nemotron_style.runtime.process import is_alive
from nemotron_style.runtime.run.attempt import LOCAL, Attempt
from nemotron_style.runtime.run.lease import SECONDS_BETWEEN_SIGNS
from nemotron_style.runtime.run.plan import Plan
from nemotron_style.runtime.run.state import CANCELLED, COMPLETED, FAILED, FINAL, LOST, JobState
from nemotron_style.runtime.units import format_clock

SUPERVISOR = "nemotron_style.runtime.launch.supervisor"
SECONDS_BETWEEN_LOOKS = 0.05
SECONDS_OF_GRACE = 120
SECONDS_TO_SEE_A_SIGN = 15.0
SECONDS_OF_SILENCE = 60.0
LAST_SIGNAL = 64


class LocalRequest(Request):
    """A plan as a shell script and the command that runs it."""

    def show_command(self) -> str:
        if not (self.plan.detached and self.plan.snapshot):
            return super().show_command()
        code = f'PYTHONPATH={shlex.quote(self.plan.snapshot.path)}"${{PYTHONPATH:+:$PYTHONPATH}}"'
        return f"$ {code} {shlex.join(self.argv)}\n"


@dataclass
class LocalLauncher:
    """Starts runs, and reads what became of them from their folders."""

    children: dict[JobHandle, subprocess.Popen[bytes]] = field(default_factory=dict)
    stopped: set[JobHandle] = field(default_factory=set)

    def compile(self, plan: Plan, *, attempt: int = 1) -> LocalRequest:
        """Raises ``ProfileError`` for more than one machine, and for mounts that cannot be."""
        if plan.nodes > 1:
            what = f"the step wants {plan.nodes} machines and the local executor has one"
            fix = "choose a profile of a cluster, or lower the number of nodes"
            raise ProfileError(Problem(where=plan.where, what=what, fix=fix))
        if plan.records is not None:
            what, fix = "a run of this machine uses the store itself", "take it out"
            raise ProfileError(Problem(where=plan.where, key="remote_store", what=what, fix=fix))
        files = {"plan.json": plan.to_json(), "launch.sh": write_script(plan)}
        command: tuple[str, ...] = ("bash", str(plan.run_dir / "launch.sh"))
        if plan.image is not None:
            command = container.write_run(plan, attempt)
        argv = supervise(plan, command, attempt) if plan.detached else command
        return LocalRequest(plan, attempt, files, argv)

    def check(self, plan: Plan) -> Iterator[Problem]:
        """The interpreter, where its path is given; of a container engine, image and mounts."""
        if plan.image is not None:
            yield from container.check_container(plan)
        elif os.path.isabs(plan.python) and not os.access(plan.python, os.X_OK):
            what = "there is no such program"
            yield Problem(where=plan.where, key="python", what=what, got=plan.python)

    def submit(self, request: Request, *, after: Sequence[JobHandle] = ()) -> JobHandle:
        """Start an attempt, or follow the one that lives.

        What a detached one waits for stands in its command already, so ``after`` adds nothing.

        Raises ``ProfileError`` when a secret that the profile names is not in the environment, and
        ``StepFailed`` when nothing could be started.
        """
        attempt = begin_attempt(request)
        if attempt is None:
            return attach(request.plan)
        plan, handle = request.plan, handle_of(attempt)
        if plan.image is not None:
            name = container.name_container(plan, attempt.number)
            job = {"executor": LOCAL, "id": name, "engine": container.choose_engine(plan)}
            write_json(attempt.path / "job.json", job)
        start = session.start_supervisor if plan.detached else session.start_child
        try:
            self.children[handle] = start(request.argv, attempt, plan)
        except (OSError, subprocess.SubprocessError) as error:
            attempt.close(FAILED, error=f"could not be started: {error}")
            raise StepFailed(Problem(where=plan.run_id, what=f"cannot start it: {error}")) from None
        return handle

    def state(self, handle: JobHandle) -> JobState:
        """The state of the attempt; one that ended without a word is closed by its parent."""
        child = self.children.get(handle)
        code = child.poll() if child else None  # first: what a dead worker wrote is there by then
        attempt = attempt_of(handle)
        if child and not attempt.record.get("detached"):  # else its supervisor does both
            if code is None:
                self.obey_orders(handle)
            else:
                close_unreported(attempt, code)
        return describe_attempt(attempt)

    def obey_orders(self, handle: JobHandle) -> None:
        """Do what another machine asks for of a job that has no worker yet, or a deaf one."""
        attempt = attempt_of(handle)
        if attempt.is_kill_requested or attempt.is_abandoned:
            session.kill_job(attempt)
        elif attempt.is_cancelled and attempt.owner is None and handle not in self.stopped:
            self.stopped.add(handle)  # a second signal may mean something else
            session.stop_job(attempt)

    def states(self, handles: Sequence[JobHandle]) -> list[JobState]:
        """The same of many; there is nobody to ask."""
        return [self.state(handle) for handle in handles]

    def logs(self, handle: JobHandle, *, node: int = 0) -> Iterator[str]:
        """Text as it is written, and "" about twenty times a second while nothing is."""
        path = attempt_of(handle).log_of(node)
        if not path.is_file():
            what, fix = "a run of this machine has one log", "leave --node out"
            raise UsageError(Problem(where=str(path.name), what=what, fix=fix))

        def over() -> bool:
            return self.state(handle).is_final

        warn = warn_of_silence(attempt_of(handle))
        for text in follow_file(path, over=over, pause=SECONDS_BETWEEN_LOOKS):
            yield text or next(warn)

    def cancel(self, handle: JobHandle, *, force: bool = False) -> None:
        """Ask it to save and stop, through its supervisor if it has one; ``force`` kills it all."""
        attempt = attempt_of(handle)
        if attempt.state in FINAL and not attempt.is_live:
            return
        attempt.record_cancel()
        self.stopped.add(handle)
        record = attempt.record
        if attempt.remote_host:  # no signal goes there
            attempt.request_stop("cancelled")
            if force:
                attempt.request_kill("cancelled")
        elif record.get("detached") and is_alive(record.get("launcher", {})):
            session.send_signal(
                record["launcher"]["pid"], signal.SIGQUIT if force else signal.SIGTERM
            )
        elif force:
            session.kill_job(attempt)
        else:
            session.stop_job(attempt)


def supervise(plan: Plan, command: Sequence[str], attempt: int) -> tuple[str, ...]:
    """The command line of the supervisor, which waits for the runs that make the inputs.

    A run that is complete by then is simply found complete, so this is final before any began.
    """
    runs = dict.fromkeys(planned.producer[0] for planned in plan.inputs if planned.producer)
    needed = [word for run_id in runs for word in ("--after", str(plan.run_dir.parent / run_id))]
    grace = str(plan.site.get("grace_seconds", SECONDS_OF_GRACE))
    start = [sys.executable, "-P", "-m", SUPERVISOR, str(plan.run_dir / "attempts" / str(attempt))]
    return (*start, "--grace", grace, *needed, "--", *command)


def warn_of_silence(attempt: Attempt) -> Iterator[str]:
    """A line for who waits for another machine that gives no sign any more; "" all other times.

    How long it has been silent is measured by this clock alone; those of two machines differ.
    """
    sign, since = attempt.last_sign, time.monotonic()
    looked = since
    while True:
        yield ""
        if time.monotonic() - looked < SECONDS_BETWEEN_SIGNS:
            continue
        looked = time.monotonic()
        if attempt.last_sign != sign:
            sign, since = attempt.last_sign, looked
        elif looked - since > SECONDS_OF_SILENCE and (host := attempt.remote_host):
            since = float("inf")  # once is enough, until it is heard of again
            command = f"nemotron-style runs cancel --abandon {attempt.run_dir.name}"
            yield (
                f"note: no sign from {host} since {format_clock(sign)}; "
                f"if that machine is gone for certain: {command}\n"
            )


def abandon_attempt(attempt: Attempt, *, unreachable: bool = False) -> None:
    """Declare an attempt lost, on the user's word that its machine or cluster is gone.

    Raises ``UsageError`` for one whose state can be told for certain, or that gives a sign of life
    while it is watched for ``SECONDS_TO_SEE_A_SIGN``.
    """
    host = attempt.remote_host or (attempt.executor if unreachable else "")
    sign = attempt.last_sign
    where = attempt.run_dir.name
    if not host:
        what = "is not out of sight on another machine, so there is nothing to declare"
        fix = f"`nemotron-style runs cancel --force {where}` ends what is under way"
        raise UsageError(Problem(where=where, what=what, fix=fix))
    end = time.monotonic() + SECONDS_TO_SEE_A_SIGN
    while attempt.last_sign == sign:  # also after the last pause, however long that took
        if time.monotonic() >= end:
            since = format_clock(sign)
            reason = f"declared lost by its user; its last sign on {host} was {since}"
            return attempt.declare_lost(reason)
        time.sleep(min(SECONDS_BETWEEN_SIGNS, SECONDS_TO_SEE_A_SIGN / 10))
    what = f"is alive: it gave a sign on {host} just now"
    fix = f"`nemotron-style runs cancel {where}` ends it from here"
    raise UsageError(Problem(where=where, what=what, fix=fix))


def describe_attempt(attempt: Attempt) -> JobState:
    """The state of an attempt by its folder and the processes that can be seen from here."""
    state, record = attempt.state, attempt.record
    host = attempt.remote_host if state not in FINAL else ""
    if host:
        reason = f"under way on {host}, last sign {format_clock(attempt.last_sign)}"
        return JobState(state, reason="; ".join(filter(None, [reason, record.get("reason")])))
    if state != LOST or record.get("state") == LOST:
        reason = str(record.get("error") or record.get("reason") or "")
        return JobState(state, record.get("exit_code"), reason)
    if attempt.is_live:
        reason = "whoever watched it is gone and it still runs; "
        reason += f"`nemotron-style runs cancel {attempt.run_dir.name}` ends it"
        return JobState(LOST, reason=reason, live=True)
    if attempt.recorded_end:  # it ended since its state was read
        return describe_attempt(attempt)
    if attempt.is_cancelled:
        return JobState(CANCELLED, reason="cancelled")
    return JobState(LOST, reason=explain_loss(attempt))


def explain_loss(attempt: Attempt) -> str:
    """Why no process is left, as far as the last line of the supervisor says."""
    if not attempt.record.get("detached"):
        return "its processes ended without a word"
    log = attempt.path / session.SUPERVISOR_LOG
    text = log.read_text(encoding="utf-8", errors="replace") if log.is_file() else ""
    *_, last = text.strip().splitlines() or [""]
    return "its supervisor ended without a word" + (f": {last}" if last else "")


def close_unreported(attempt: Attempt, code: int) -> None:
    """Record an end that the worker itself could not; ``code`` is the child's exit code.

    Nothing is written while the worker lives on without the process above it.
    """
    if attempt.record.get("state") in FINAL - {LOST} or is_alive(attempt.owner or {}):
        return
    number = -code if code < 0 else code - 128  # shells and engines add 128 to a signal
    if attempt.is_run_complete:
        attempt.close(COMPLETED, exit_code=0)
    elif attempt.rank_failure:
        attempt.close(FAILED, **attempt.rank_failure)
    elif number in (signal.SIGTERM, signal.SIGINT):
        attempt.close(CANCELLED, exit_code=130, error="stopped before the step began")
    elif 0 < number <= LAST_SIGNAL:
        killed = number == signal.SIGKILL and not attempt.is_cancelled
        hint = "; was there enough memory?" if killed else ""
        error = f"ended by {name_signal(number)}{hint}"
        attempt.close(FAILED, exit_code=128 + number, error=error)
    else:
        error = f"ended with exit code {code} before its time"
        error = "cancelled" if attempt.is_cancelled else error
        attempt.close(FAILED, exit_code=code, error=error)


def name_signal(number: int) -> str:
    """``SIGKILL`` for 9; the number itself where it has no name."""
    with contextlib.suppress(ValueError):
        return signal.Signals(number).name
    return f"signal {number}"
