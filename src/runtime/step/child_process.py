"""A program that a step runs, such as the script of another system.

Its output passes through this process, so that it is read while it comes and no secret reaches the
log.  A child that is left alone cannot write any more, and ends.
"""

from __future__ import annotations

import codecs
import io
import os
import selectors
import signal
import subprocess
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

LINES_KEPT = 15
SECONDS_TO_END = 60.0
SECONDS_BETWEEN_POLLS = 0.2
MOST_BYTES = 1 << 20
"""Of one read; a pipe holds 64 KiB."""


class ChildProcess:
    """A program while it runs; ``on_line`` sees every line of its output after it was printed.

    One thread waits and reads, so that nobody asks what a line told before it was read. With
    ``own_session`` a signal reaches all that the program started; else the program alone.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        folder: Path | str | None,
        environment: Mapping[str, str],
        own_session: bool = False,
        on_line: Callable[[str], None] = lambda line: None,
    ) -> None:
        self.tail: deque[str] = deque(maxlen=LINES_KEPT)
        self._on_line = on_line
        self._kill = os.killpg if own_session else os.kill
        self._process = subprocess.Popen(
            command,
            cwd=folder,
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            bufsize=0,
            start_new_session=own_session,
        )
        assert self._process.stdout is not None
        self._output, self._is_open, self._begun = self._process.stdout, True, ""
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._output, selectors.EVENT_READ)
        utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        # A bar that is drawn again after "\r" is a line each time.
        self._decoder = io.IncrementalNewlineDecoder(utf8, translate=True)

    def wait(self, seconds: float) -> int | None:
        """Pass its output on for so long; the exit code (negative: its signal), None while it runs.

        Before an exit code comes back, all that the program wrote was passed on.
        """
        end = time.monotonic() + seconds
        while (code := self._process.poll()) is None:
            left = end - time.monotonic()
            self._pass_on(max(0.0, min(left, SECONDS_BETWEEN_POLLS)))
            if left <= 0:  # after a read: every call takes in what was there before it
                return None
        # Something that it left running may hold the pipe open, so no end of file is waited for:
        # one read takes more than a pipe holds.
        self._pass_on(0)
        if rest := self._begun + self._decoder.decode(b"", final=True):
            self._begun = ""
            self._split(rest.removesuffix("\n") + "\n")
        return code

    def stop(self, seconds: float = SECONDS_TO_END) -> int:
        """End it: SIGTERM, and SIGKILL when it is still there after ``seconds``; its exit code."""
        self.send(signal.SIGTERM)
        code = self.wait(seconds)
        self.send(signal.SIGKILL)  # what it started may have outlived it
        while code is None:
            code = self.wait(seconds)
        return code

    def send(self, number: signal.Signals) -> None:
        """Send it a signal; nothing where it is gone."""
        with suppress(ProcessLookupError, PermissionError):
            self._kill(self._process.pid, number)

    def _pass_on(self, seconds: float) -> None:
        """Take in all that is in the pipe, once something is there or ``seconds`` are over."""
        if not self._is_open:
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(seconds)
        elif self._selector.select(seconds):
            content = os.read(self._output.fileno(), MOST_BYTES)
            self._is_open = bool(content)
            self._split(self._decoder.decode(content))

    def _split(self, text: str) -> None:
        """Print the lines that are complete by ``text``; keep the one that has only begun."""
        *lines, self._begun = (self._begun + text).split("\n")
        for line in lines:
            print(line, flush=True)
            if line.strip():
                self.tail.append(line)
            self._on_line(line)
