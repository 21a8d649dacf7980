"""NeMo-RL's own script, as it is, in a process of its own.

Its output passes through this process, so that it is read while it comes and no secret reaches the
log.  A child that is left alone cannot write any more, and ends.
"""

from __future__ import annotations

import codecs
import io
import os
import selectors
import shutil
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from nemotron_style.runtime.errors import InputError, Problem

HOME_VARIABLE = "NEMO_RL_HOME"
HOME = "/opt/nemo-rl"
LINES_KEPT = 15
SECONDS_TO_END = 60.0
SECONDS_BETWEEN_POLLS = 0.2
MOST_BYTES = 1 << 20
"""Of one read; a pipe holds 64 KiB."""


def find_home(script: str, environment: Mapping[str, str] = os.environ) -> Path:
    """NeMo-RL's tree: that of its image, or the one that ``NEMO_RL_HOME`` names.

    Raises InputError when the script is not in it.
    """
    home = Path(environment.get(HOME_VARIABLE) or HOME)
    if not (home / script).is_file():
        what, fix = "NeMo-RL is not here", f"run in its image, or set {HOME_VARIABLE} to its tree"
        raise InputError(Problem(where=str(home), key=script, what=what, fix=fix))
    return home


def build_command(home: Path, script: str, config: Path) -> list[str]:
    """The command line: by ``uv run``, as NeMo-RL documents it, where the tree is a uv project."""
    by_uv = (home / "pyproject.toml").is_file() and shutil.which("uv")
    start = ["uv", "run"] if by_uv else [sys.executable]
    return [*start, script, "--config", str(config)]


class ScriptProcess:
    """The script while it runs; ``on_line`` sees every line of its output after it was printed.

    One thread waits and reads, so that nobody asks what a line told before it was read.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        home: Path,
        environment: Mapping[str, str],
        on_line: Callable[[str], None],
    ) -> None:
        self.tail: deque[str] = deque(maxlen=LINES_KEPT)
        self._on_line = on_line
        self._process = subprocess.Popen(
            command,
            cwd=home,
            env={**os.environ, **environment, "PYTHONUNBUFFERED": "1"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            bufsize=0,
            start_new_session=True,  # `uv run` has children; all of them are told to end
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

        Before an exit code comes back, all that the script wrote was passed on.
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
        self._signal(signal.SIGTERM)
        code = self.wait(seconds)
        self._signal(signal.SIGKILL)  # what it started may have outlived it
        while code is None:
            code = self.wait(seconds)
        return code

    def _signal(self, number: signal.Signals) -> None:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, number)

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
