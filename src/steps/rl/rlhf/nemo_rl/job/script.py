"""NeMo-RL's own script, as it is, in a process of its own.

Its output passes through this process, so that it is read while it comes and no secret reaches the
log.  A child that is left alone cannot write any more, and ends.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from nemotron_style.runtime.errors import InputError, Problem

HOME_VARIABLE = "NEMO_RL_HOME"
HOME = "/opt/nemo-rl"
LINES_KEPT = 15
SECONDS_TO_END = 60.0
SECONDS_TO_DRAIN = 5.0


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
    """The script while it runs; ``on_line`` sees every line of its output after it was printed."""

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
            text=True,
            errors="replace",
            start_new_session=True,  # `uv run` has children; all of them are told to end
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def wait(self, seconds: float) -> int | None:
        """The exit code (negative: the signal that ended it), or None while it runs."""
        try:
            code = self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            return None
        # Something that it left running may hold the pipe open.
        self._reader.join(SECONDS_TO_DRAIN)
        return code

    def stop(self, seconds: float = SECONDS_TO_END) -> int:
        """End it: SIGTERM, and SIGKILL when it is still there after ``seconds``; its exit code."""
        self._signal(signal.SIGTERM)
        code = self.wait(seconds)
        self._signal(signal.SIGKILL)  # what it started may have outlived it
        return self._process.wait() if code is None else code

    def _signal(self, number: signal.Signals) -> None:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, number)

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            text = line.rstrip("\n")
            print(text, flush=True)
            if text.strip():
                self.tail.append(text)
            self._on_line(text)
