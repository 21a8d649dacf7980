"""The lease of an attempt, as its worker keeps it: signs of life, and orders from other machines.

A signal reaches a process of the same machine only. So whoever is somewhere else leaves a file in
the attempt's folder, and who carries the attempt out looks for it when giving its next sign.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from nemotron_style.runtime.process import find_marked
from nemotron_style.runtime.run.attempt import Attempt
from nemotron_style.runtime.run.state import CANCELLED

SECONDS_BETWEEN_SIGNS = 2.0
EXIT_OF_A_KILL = 128 + signal.SIGKILL


@contextmanager
def keep_lease(attempt: Attempt) -> Iterator[None]:
    """Give signs of life until the end of the block, and end this process when it is told to."""
    over = threading.Event()

    def give_signs() -> None:
        while True:
            attempt.give_sign()
            if attempt.is_kill_requested or attempt.is_abandoned:
                end_at_once(attempt)
            if over.wait(SECONDS_BETWEEN_SIGNS):
                return

    thread = threading.Thread(target=give_signs, name="lease", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def end_at_once(attempt: Attempt) -> None:
    """SIGKILL for every process of an attempt, this one last.

    Of an abandoned one nothing is recorded: its record belongs to whoever declared it lost.
    """
    try:
        if not attempt.is_abandoned and attempt.recorded_end is None:
            attempt.close(CANCELLED, exit_code=EXIT_OF_A_KILL, error="ended at once, as was asked")
    finally:
        for pid in find_marked(attempt.mark):
            if pid != os.getpid():
                with suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, signal.SIGKILL)
        os.kill(os.getpid(), signal.SIGKILL)
