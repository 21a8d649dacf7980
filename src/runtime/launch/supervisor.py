"""The process that stays with a detached job of this machine.

    python -m nemotron_style.runtime.launch.supervisor ATTEMPT [--grace SECONDS] [--after RUN]...
        -- ARGV

It waits until the runs that this one needs have completed, starts the command in a session of its
own, waits for its end, and records an end that the worker itself could not. SIGTERM cancels: the
job is asked to save and stop, and killed after the grace; SIGQUIT kills it at once. No other
signal of a terminal or a departing shell ends it.
"""

from __future__ import annotations

import argparse
import contextlib
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from nemotron_style.runtime.launch.local import SECONDS_OF_GRACE, close_unreported
from nemotron_style.runtime.launch.session import kill_job, start_child, stop_job
from nemotron_style.runtime.launch.status import read_status
from nemotron_style.runtime.process import is_alive
from nemotron_style.runtime.run.attempt import Attempt
from nemotron_style.runtime.run.folder import RunFolder
from nemotron_style.runtime.run.lease import SECONDS_BETWEEN_SIGNS
from nemotron_style.runtime.run.state import CANCELLED, COMPLETED, FAILED, JobState

SECONDS_BETWEEN_LOOKS = 0.1
MOST_SECONDS_BETWEEN_LOOKS = 0.5
STOPPED = 130


@dataclass
class Supervisor:
    """One detached attempt, the runs that it needs, and the seconds that it may take to stop."""

    attempt: Attempt
    needed: Sequence[RunFolder] = ()
    grace: int = SECONDS_OF_GRACE
    cancelled: bool = False
    killed: bool = False
    started: bool = False

    def listen(self) -> None:
        """Cancel on SIGTERM, kill on SIGQUIT and at the end of the grace; nothing else ends it."""
        signal.signal(signal.SIGTERM, self.stop)
        signal.signal(signal.SIGQUIT, self.kill)
        signal.signal(signal.SIGALRM, self.kill)
        for number in (signal.SIGHUP, signal.SIGINT):  # SIG_IGN would be inherited by the job
            signal.signal(number, lambda *_: None)
        # A cancel that came before these handlers is found in the folder.
        self.cancelled = self.attempt.is_cancelled

    def stop(self, *_: object) -> None:
        """Ask the job to save and stop, and kill it after the grace."""
        if not self.cancelled:
            self.attempt.record_cancel()
        self.cancelled = True
        if self.started:
            stop_job(self.attempt)
            signal.alarm(self.grace)

    def kill(self, *_: object) -> None:
        """End the job at once."""
        self.attempt.record_cancel()
        self.cancelled = self.killed = True
        if self.started:
            kill_job(self.attempt)

    def look_for_orders(self) -> None:
        """Give a sign of life, and do what was asked for on machines from which no signal comes."""
        self.attempt.give_sign()
        if self.attempt.is_kill_requested or self.attempt.is_abandoned:
            if not self.killed:
                self.kill()
        elif self.attempt.is_cancelled and not self.cancelled:
            self.stop()

    def execute(self, command: Sequence[str]) -> None:
        """Wait for the needed runs, run the command, and record how the attempt ended."""
        for folder in self.needed:
            state = self.await_run(folder)
            if self.cancelled:
                break
            if state.state != COMPLETED:
                error = f"needs {folder.run_id}, which is {state.state}"
                error += f": {state.reason}" if state.reason else ""
                return self.attempt.close(CANCELLED, exit_code=1, error=error)
        self.attempt.update(reason="")
        return self.run(command)

    def await_run(self, folder: RunFolder) -> JobState:
        """The end of a run that this one needs; a run that never began is not waited for."""
        for pause in grow_pauses():
            state = read_status(folder)
            self.look_for_orders()
            if state.is_final or self.cancelled:
                return state
            if not folder.attempts:  # the worker finds the input elsewhere, or says that it is gone
                return JobState(COMPLETED)
            reason = f"waits for {folder.run_id}"
            if self.attempt.record.get("reason") != reason:
                self.attempt.update(reason=reason)
            time.sleep(pause)
        raise AssertionError("pauses never end")

    def run(self, command: Sequence[str]) -> None:
        """Start the job and stay until nothing of it is left."""
        if "buried" in (self.attempt.owner or {}):
            return None  # it was taken for lost before this process was known
        if self.cancelled:
            return self.attempt.close(CANCELLED, exit_code=STOPPED, error="cancelled")
        try:
            child = start_child(command, self.attempt)
        except OSError as error:
            return self.attempt.close(FAILED, error=f"could not be started: {error}")
        self.started = True
        if self.cancelled:  # while it was being started
            (self.kill if self.killed else self.stop)()
        code = None
        while code is None:
            self.look_for_orders()
            with contextlib.suppress(subprocess.TimeoutExpired):
                code = child.wait(SECONDS_BETWEEN_SIGNS)
        while is_alive(self.attempt.owner or {}):  # the worker outlived its parent
            self.look_for_orders()
            time.sleep(SECONDS_BETWEEN_LOOKS)
        signal.alarm(0)
        if self.cancelled:
            kill_job(self.attempt)
        return close_unreported(self.attempt, code)


def grow_pauses() -> Iterator[float]:
    """Seconds between looks, without end: short at first, as most waits are."""
    pause = SECONDS_BETWEEN_LOOKS
    while True:
        yield pause
        pause = min(pause * 1.2, MOST_SECONDS_BETWEEN_LOOKS)


def main(arguments: Sequence[str]) -> int:
    """Supervise one attempt; always 0, since how the job ended is in its folder."""
    parser = argparse.ArgumentParser(prog="supervisor", description=__doc__)
    parser.add_argument("attempt", type=Path)
    parser.add_argument("--grace", type=int, default=SECONDS_OF_GRACE)
    parser.add_argument("--after", type=Path, action="append", default=[])
    parser.add_argument("command", nargs="+")
    options = parser.parse_args(arguments)
    needed = [RunFolder(path) for path in options.after]
    supervisor = Supervisor(Attempt(options.attempt), needed, options.grace)
    supervisor.listen()
    supervisor.execute(options.command)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
