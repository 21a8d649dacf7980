"""How far a transfer is, told once in a while on standard error."""

from __future__ import annotations

import sys
import threading
import time

from nemotron_style.runtime.units import format_size

EVERY_S = 5.0


class Progress:
    """Counts bytes of several threads; a transfer that is over soon says nothing."""

    def __init__(self, what: str, total: int) -> None:
        self._what, self._total, self._done = what, total, 0
        self._told = time.monotonic()
        self._lock = threading.Lock()

    def add(self, count: int) -> None:
        """So many more bytes are over."""
        with self._lock:
            self._done += count
            now = time.monotonic()
            if now - self._told < EVERY_S:
                return
            self._told = now
            share = f"{format_size(self._done)} of {format_size(self._total)}"
        print(f"{self._what}: {share}", file=sys.stderr, flush=True)
