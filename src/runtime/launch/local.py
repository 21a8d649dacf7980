"""Runs on this machine, each in a session of its own.

The job does not hang on the command line that started it: its output goes to a file that the
command line follows, and a command line that dies leaves the job running. The next same command
finds the live attempt and follows it.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from nemotron_style.runtime.errors import Problem, ProfileError
from nemotron_style.runtime.launch.base import (
    ATTEMPT_VARIABLE,
    JobHandle,
    Request,
    attach,
    attempt_of,
    begin,
    render_files,
    write_script,
)
from nemotron_style.runtime.plan import Plan
from nemotron_style.runtime.process import kill_family
from nemotron_style.runtime.run import Attempt
from nemotron_style.runtime.state import CANCELLED, FAILED, FINAL, LOST, JobState

EXECUTOR = "local"
SECONDS_BETWEEN_LOOKS = 0.05
ASKED_TO_STOP = (-signal.SIGTERM, -signal.SIGINT)


@dataclass(frozen=True)
class LocalRequest:
    """A plan as a shell script and the command that runs it."""

    plan: Plan
    attempt: int
    files: Mapping[str, str]
    argv: tuple[str, ...]

    def render(self) -> str:
        return render_files(self.files, self.argv, run_id=self.plan.run_id)


@dataclass
class LocalLauncher:
    """Starts runs, and reads what became of them from their folders."""

    children: dict[JobHandle, subprocess.Popen[bytes]] = field(default_factory=dict)

    def compile(self, plan: Plan, *, attempt: int = 1) -> LocalRequest:
        """Raises ``ProfileError`` when the plan needs more than one machine."""
        if plan.nodes > 1:
            what = f"the step wants {plan.nodes} machines and the local executor has one"
            fix = "choose a profile of a cluster, or lower the number of nodes"
            raise ProfileError(Problem(where=f"profile {plan.profile}", what=what, fix=fix))
        files = {"plan.json": plan.to_json(), "launch.sh": write_script(plan)}
        argv = ("bash", str(plan.run_dir / "launch.sh"))
        return LocalRequest(plan, attempt, files, argv)

    def check(self, plan: Plan) -> Iterator[Problem]:
        """Nothing can stand in the way of a process of this machine."""
        yield from ()

    def submit(self, request: Request, *, after: Sequence[JobHandle] = ()) -> JobHandle:
        """Start an attempt, or take hold of the one that lives.

        Raises ``ProfileError`` when a secret that the profile names is not in the environment.
        """
        attempt = begin(request)
        if attempt is None:
            return attach(request.plan)
        handle = JobHandle(EXECUTOR, request.plan.record_dir, attempt.number)
        with open(attempt.log, "ab") as log:
            self.children[handle] = subprocess.Popen(
                request.argv,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env={**os.environ, ATTEMPT_VARIABLE: str(attempt.number)},
            )
        return handle

    def state(self, handle: JobHandle) -> JobState:
        """How the attempt stands; one that ended without a word is closed by its parent."""
        child = self.children.get(handle)
        code = child.poll() if child else None  # first: what a dead worker wrote is there by then
        attempt = attempt_of(handle)
        if code is not None and attempt.record.get("state") not in FINAL:
            close_unsaid(attempt, code)
        state, record = attempt.state, attempt.record
        reason = str(record.get("error", ""))
        if state == LOST and not reason:
            reason = "its processes ended without a word"
        return JobState(state, record.get("exit_code"), reason)

    def logs(self, handle: JobHandle, *, node: int = 0) -> Iterator[str]:
        """Text as it is written, and "" about twenty times a second while nothing is."""
        with open(attempt_of(handle).log, encoding="utf-8", errors="replace") as log:
            while True:
                over = self.state(handle).is_final  # before reading: what is written is read
                text = log.read()
                yield text
                if over and not text:
                    return
                if not text:
                    time.sleep(SECONDS_BETWEEN_LOOKS)

    def cancel(self, handle: JobHandle, *, force: bool = False) -> None:
        """SIGTERM to the worker (through torchrun if there is one); ``force`` kills all of it."""
        attempt, child = attempt_of(handle), self.children.get(handle)
        leader = (attempt.owner or {}).get("leader") or (child.pid if child else None)
        if leader is None or attempt.state in FINAL:
            return
        attempt.note_cancel()
        if force:
            kill_family(leader)
            return
        with contextlib.suppress(ProcessLookupError):
            os.kill(leader, signal.SIGTERM)


def close_unsaid(attempt: Attempt, code: int) -> None:
    """Write down an end that the worker itself could not."""
    if attempt.rank_failure:
        attempt.close(FAILED, **attempt.rank_failure)
    elif code in ASKED_TO_STOP:
        attempt.close(CANCELLED, exit_code=130, error="stopped before the step began")
    elif code < 0:
        name = signal.Signals(-code).name
        hint = "; was there enough memory?" if code == -signal.SIGKILL else ""
        state = CANCELLED if attempt.is_cancelled else FAILED
        attempt.close(state, exit_code=128 - code, error=f"ended by {name}{hint}")
    else:
        told = f"ended with exit code {code} before its time"
        attempt.close(CANCELLED if attempt.is_cancelled else FAILED, exit_code=code, error=told)
