"""Whoever stays with a detached job of this machine.

    python -m nemotron_style.runtime.launch.supervisor ATTEMPT [--grace SECONDS] [--after RUN]...
        -- ARGV

It waits until the runs that this one needs have completed, starts the command in a session of its
own, waits for its end, and writes down what the worker itself could not. SIGTERM cancels: the job
is asked to save and stop, and killed after the grace; SIGQUIT kills it at once. Nothing else that
a terminal or a departing shell sends ends it.
"""

from __future__ import annotations

import argparse
import signal
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
from nemotron_style.runtime.run.state import CANCELLED, COMPLETED, FAILED, JobState

SECONDS_BETWEEN_LOOKS = 0.1
MOST_SECONDS_BETWEEN_LOOKS = 0.5
STOPPED = 130


@dataclass
class Supervisor:
    """One detached attempt, the runs that it needs, and how long it may take to stop."""

    attempt: Attempt
    needed: Sequence[RunFolder] = ()
    grace: int = SECONDS_OF_GRACE
    asked: bool = False
    forced: bool = False
    started: bool = False

    def listen(self) -> None:
        """Take SIGTERM, SIGQUIT and the end of the grace as orders; nothing else ends it.

        The others get a handler and are not ignored: what is ignored stays so in the job. An
        order from before is found written: a shell's background jobs ignore SIGQUIT until then.
        """
        signal.signal(signal.SIGTERM, self.stop)
        signal.signal(signal.SIGQUIT, self.kill)
        signal.signal(signal.SIGALRM, self.kill)
        for number in (signal.SIGHUP, signal.SIGINT):
            signal.signal(number, lambda *_: None)
        self.asked = self.attempt.is_cancelled

    def stop(self, *_: object) -> None:
        """Ask the job to save and stop, for as long as the grace lasts."""
        if not self.asked:
            self.attempt.record_cancel()
        self.asked = True
        if self.started:
            stop_job(self.attempt)
            signal.alarm(self.grace)

    def kill(self, *_: object) -> None:
        """End the job at once."""
        self.attempt.record_cancel()
        self.asked = self.forced = True
        if self.started:
            kill_job(self.attempt)

    def carry_out(self, command: Sequence[str]) -> None:
        """From waiting to the end of the job; how it ended is written down."""
        for folder in self.needed:
            state = self.await_run(folder)
            if self.asked:
                return self.attempt.close(CANCELLED, exit_code=STOPPED, error="cancelled")
            if state.state != COMPLETED:
                told = f"needs {folder.run_id}, which is {state.state}"
                error = f"{told}: {state.reason}" if state.reason else told
                return self.attempt.close(CANCELLED, exit_code=1, error=error)
        self.attempt.update(reason="")
        return self.run(command)

    def await_run(self, folder: RunFolder) -> JobState:
        """The end of a run that this one needs; what nobody ever began is not waited for."""
        for pause in grow_pauses():
            state = read_status(folder)
            if state.is_final or self.asked:
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
        if self.asked:
            return self.attempt.close(CANCELLED, exit_code=STOPPED, error="cancelled")
        try:
            child = start_child(command, self.attempt)
        except OSError as error:
            return self.attempt.close(FAILED, error=f"could not be started: {error}")
        self.started = True
        if self.asked:  # while it was being started
            (self.kill if self.forced else self.stop)()
        code = child.wait()
        while is_alive(self.attempt.owner or {}):  # the worker outlived what was above it
            time.sleep(SECONDS_BETWEEN_LOOKS)
        signal.alarm(0)
        if self.asked:
            kill_job(self.attempt)
        return close_unreported(self.attempt, code)


def grow_pauses() -> Iterator[float]:
    """Seconds between looks, without end: short at first, as most waits are."""
    pause = SECONDS_BETWEEN_LOOKS
    while True:
        yield pause
        pause = min(pause * 1.2, MOST_SECONDS_BETWEEN_LOOKS)


def main(arguments: Sequence[str]) -> int:
    """Watch over one attempt; always 0, for what became of the job stands in its folder."""
    parser = argparse.ArgumentParser(prog="supervisor", description=__doc__)
    parser.add_argument("attempt", type=Path)
    parser.add_argument("--grace", type=int, default=SECONDS_OF_GRACE)
    parser.add_argument("--after", type=Path, action="append", default=[])
    parser.add_argument("command", nargs="+")
    told = parser.parse_args(arguments)
    needed = [RunFolder(path) for path in told.after]
    supervisor = Supervisor(Attempt(told.attempt), needed, told.grace)
    supervisor.listen()
    supervisor.carry_out(told.command)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
