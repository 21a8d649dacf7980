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
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from nemotron_style.runtime.errors import Problem, ProfileError, StepFailed
from nemotron_style.runtime.jsonfile import write_text
from nemotron_style.runtime.launch.base import (
    JobHandle,
    JobState,
    Request,
    render_files,
    write_script,
)
from nemotron_style.runtime.plan import Plan
from nemotron_style.runtime.process import kill_family
from nemotron_style.runtime.run import FINAL, Attempt, RunFolder
from nemotron_style.runtime.worker import ATTEMPT_VARIABLE

EXECUTOR = "local"
SECONDS_BETWEEN_LOOKS = 0.05
ASKED_TO_STOP = (-signal.SIGTERM, -signal.SIGINT)


@dataclass(frozen=True)
class LocalRequest:
    """A plan as a shell script and the command that runs it."""

    plan: Plan
    files: Mapping[str, str]
    argv: tuple[str, ...]

    def render(self) -> str:
        return render_files(self.files, self.argv, run_id=self.plan.run_id)


@dataclass
class LocalLauncher:
    """Starts runs, and reads what became of them from their folders."""

    children: dict[JobHandle, subprocess.Popen[bytes]] = field(default_factory=dict)

    def compile(self, plan: Plan) -> LocalRequest:
        """Raises ``ProfileError`` when the plan needs more than one machine."""
        nodes = int(plan.resources.get("nodes", 1))
        if nodes > 1:
            what = f"the step wants {nodes} machines and the local executor has one"
            fix = "choose a profile of a cluster, or lower the number of nodes"
            raise ProfileError(Problem(where=f"profile {plan.profile}", what=what, fix=fix))
        files = {"plan.json": plan.to_json(), "launch.sh": write_script(plan)}
        return LocalRequest(plan, files, ("bash", str(plan.run_dir / "launch.sh")))

    def submit(self, request: Request) -> JobHandle:
        """Start an attempt, or take hold of the one that lives.

        Raises ``ProfileError`` when a secret that the profile names is not in the environment.
        """
        plan = request.plan
        check_secrets(plan)
        folder = RunFolder(plan.run_dir)
        attempt = folder.claim_attempt()
        if attempt is None:
            return attach(folder)
        for name, text in request.files.items():
            write_text(folder.path / name, text)
        handle = JobHandle(EXECUTOR, folder.path, attempt.number)
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
        """How the attempt stands; one that ended without a word is closed here."""
        child = self.children.get(handle)
        code = child.poll() if child else None  # first: what a dead worker wrote is there by then
        attempt = attempt_of(handle)
        if code is not None and attempt.record.get("state") not in FINAL:
            close_unsaid(attempt, code)
        if attempt.state == "died" and attempt.owner is None:
            attempt.bury()  # or its worker, if there is one on its way, is first, and it lives
        record = attempt.record
        return JobState(attempt.state, record.get("exit_code"), str(record.get("error", "")))

    def logs(self, handle: JobHandle) -> Iterator[str]:
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
        if force:
            kill_family(leader)
            return
        with contextlib.suppress(ProcessLookupError):
            os.kill(leader, signal.SIGTERM)


def attach(folder: RunFolder) -> JobHandle:
    """A handle of the newest attempt, whoever started it."""
    last = folder.last_attempt
    if last is None:
        raise StepFailed(f"{folder.run_id} has no attempt to follow; run the same command again")
    return JobHandle(EXECUTOR, folder.path, last.number)


def attempt_of(handle: JobHandle) -> Attempt:
    return Attempt(Path(handle.run_dir, "attempts", str(handle.attempt)))


def close_unsaid(attempt: Attempt, code: int) -> None:
    """Write down an end that the worker itself could not."""
    if attempt.rank_failure:
        attempt.close("failed", **attempt.rank_failure)
    elif code in ASKED_TO_STOP:
        attempt.close("stopped", exit_code=130, error="stopped before the step began")
    elif code < 0:
        name = signal.Signals(-code).name
        hint = "; was there enough memory?" if code == -signal.SIGKILL else ""
        attempt.close("died", exit_code=128 - code, error=f"ended by {name}{hint}")
    else:
        attempt.close("died", exit_code=code, error=f"ended with exit code {code} before its time")


def check_secrets(plan: Plan) -> None:
    """Raise ``ProfileError`` naming the secrets that the environment does not have."""
    missing = [name for name in plan.secrets if name not in os.environ]
    if missing:
        what = f"not in the environment: {', '.join(missing)}"
        fix = "export them, or take them out of the profile's secrets"
        raise ProfileError(
            Problem(where=f"profile {plan.profile}", key="secrets", what=what, fix=fix)
        )
