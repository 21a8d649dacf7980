"""The states of a job: one vocabulary for every launcher, for records and for people."""

from __future__ import annotations

from dataclasses import dataclass

PENDING = "PENDING"
RUNNING = "RUNNING"
REQUEUED = "REQUEUED"
COMPLETED = "COMPLETED"
FAILED = "FAILED"
CANCELLED = "CANCELLED"
TIMEOUT = "TIMEOUT"
LOST = "LOST"

FINAL = frozenset({COMPLETED, FAILED, CANCELLED, TIMEOUT, LOST})


@dataclass(frozen=True)
class JobState:
    """One of the eight states, with the exit code and the reason as far as known.

    ``live``: a process of a LOST job still runs; its worker outlived whoever watched it.
    ``stale``: it is the last that is known, since who could tell more was not reached.
    """

    state: str
    exit_code: int | None = None
    reason: str = ""
    live: bool = False
    stale: bool = False

    @property
    def is_final(self) -> bool:
        """Whether nothing more will come of it."""
        return self.state in FINAL and not self.live
