"""Other machines: namespaces of this one, or what this process takes itself for."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from nemotron_style.runtime import process

ENTER = """
import contextlib, io, json, sys
from nemotron_style.runtime.cli import main
from nemotron_style.runtime.launch import local
local.SECONDS_TO_SEE_A_SIGN = 3.0
answers = []
for words in json.loads(sys.argv[1]):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(words)
    answers.append([code, out.getvalue(), err.getvalue()])
print(json.dumps(answers))
"""


def pretend_to_be(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have this process take itself for one of another machine."""
    names = ("host", "machine", "boot", "namespace")
    monkeypatch.setattr(process, "_describe_host", lambda: dict.fromkeys(names, host))
    monkeypatch.setattr(os, "uname", lambda: SimpleNamespace(nodename=host))


class Host:
    """A machine with its own network, processes, name and boot, on the same disk."""

    def __init__(self, name: str, folder: Path) -> None:
        boot = folder / f"boot-{name}"
        boot.write_text(f"{name}-boot\n")
        script = f"hostname {name}; mount --bind {boot} {process.BOOT_ID}"
        script += "; ip link set lo up 2>/dev/null; echo ready; exec sleep 600"
        spaces = ["--net", "--pid", "--uts", "--mount", "--fork", "--mount-proc", "--kill-child"]
        self._outer = subprocess.Popen(
            ["unshare", *spaces, "bash", "-ec", script], stdout=subprocess.PIPE, text=True
        )
        assert self._outer.stdout is not None
        if self._outer.stdout.readline() != "ready\n":
            self._outer.wait()
            pytest.skip("namespaces are not allowed here")
        children = Path(f"/proc/{self._outer.pid}/task/{self._outer.pid}/children")
        self._init = int(children.read_text().split()[0])

    def start(self, words: Sequence[str], output: Path) -> subprocess.Popen[str]:
        """Start a command there."""
        spaces = ["--net", "--pid", "--uts", "--mount", f"--wd={os.getcwd()}"]
        return subprocess.Popen(
            ["nsenter", "--target", str(self._init), *spaces, *words],
            stdin=subprocess.DEVNULL,
            stdout=output.open("w"),
            stderr=subprocess.STDOUT,
            text=True,
        )

    def call(self, *commands: Sequence[str]) -> list[tuple[int, str, str]]:
        """Exit code, output and errors of some command lines, one after the other."""
        spaces = ["--net", "--pid", "--uts", "--mount", f"--wd={os.getcwd()}"]
        script = [sys.executable, "-c", ENTER, json.dumps([list(words) for words in commands])]
        done = subprocess.run(
            ["nsenter", "--target", str(self._init), *spaces, *script],
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        answers: list[Any] = json.loads(done.stdout)
        return [(code, out, err) for code, out, err in answers]

    def power_off(self) -> None:
        """End it and all of its processes at once, with no word."""
        self._outer.send_signal(signal.SIGKILL)
        self._outer.wait()


def has_namespaces() -> bool:
    """Whether this user may make them."""
    words = ["unshare", "--net", "--pid", "--uts", "--mount", "--fork", "true"]
    try:
        return subprocess.run(words, capture_output=True, check=False).returncode == 0
    except OSError:
        return False
