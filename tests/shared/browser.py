"""A headless Chromium, driven by its DevTools protocol over two pipes: no port, no package."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

CHROMIUM = shutil.which("chromium")
NEEDS_CHROMIUM = "needs chromium (apt-get install chromium)"
SECONDS = 180.0


@dataclass
class Browser:
    """``requests`` are the URLs that a page asked for, ``complaints`` what its console says."""

    process: subprocess.Popen[bytes]
    send_fd: int
    receive_fd: int
    session: str = ""
    requests: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)
    _number: int = 0
    _received: bytes = b""

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Send a command to the page, and what came back; events are noted on the way."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": params}
        message |= {"sessionId": self.session} if self.session else {}
        os.write(self.send_fd, json.dumps(message).encode() + b"\0")
        while (answer := self._read()).get("id") != self._number:
            self._note(answer)
        assert "error" not in answer, answer
        result: dict[str, Any] = answer["result"]
        return result

    def attach(self) -> None:
        """Begin a page of its own and watch what it asks for and what it complains about."""
        self.session = ""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)[
            "sessionId"
        ]
        for domain in ("Page", "Network", "Log", "Runtime"):
            self.call(f"{domain}.enable")

    def open(self, path: Path, *, scripts: bool = True) -> None:
        """Open a file in a page of its own, to its end; what was noted before is forgotten."""
        self.attach()
        self.requests.clear()
        self.complaints.clear()
        self.call("Emulation.setScriptExecutionDisabled", value=not scripts)
        self.call("Page.navigate", url=path.as_uri())
        end = time.monotonic() + SECONDS
        while self.evaluate("document.readyState") != "complete" or not self._is_at(path):
            assert time.monotonic() < end, "the page was not loaded"

    def evaluate(self, expression: str) -> Any:
        """The value of an expression in the page, which need not be allowed to run scripts."""
        result = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    def prefer(self, scheme: str) -> None:
        """Show the page to someone who prefers ``light`` or ``dark``."""
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.call("Emulation.setEmulatedMedia", features=features)

    def resize(self, width: int, height: int = 900) -> None:
        """Show the page as a screen of this size does."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
        self.call("Emulation.setDeviceMetricsOverride", **size)

    def _is_at(self, path: Path) -> bool:
        return bool(self.evaluate("location.href") == path.as_uri())

    def _read(self) -> dict[str, Any]:
        while b"\0" not in self._received:
            piece = os.read(self.receive_fd, 1 << 16)
            assert piece, "chromium ended"
            self._received += piece
        message, _, self._received = self._received.partition(b"\0")
        parsed: dict[str, Any] = json.loads(message)
        return parsed

    def _note(self, event: dict[str, Any]) -> None:
        method, params = event.get("method"), event.get("params", {})
        if method == "Network.requestWillBeSent":
            self.requests.append(params["request"]["url"])
        elif method == "Log.entryAdded":
            self.complaints.append(params["entry"]["text"])
        elif method in ("Runtime.consoleAPICalled", "Runtime.exceptionThrown"):
            self.complaints.append(json.dumps(params))


@contextmanager
def run_browser(profile: Path) -> Iterator[Browser]:
    """A browser with a profile of its own, which ends with the block."""
    assert CHROMIUM
    (read_commands, send), (receive, write_answers) = os.pipe(), os.pipe()
    # The protocol's pipes are file descriptors 3 and 4 of the browser.
    command = [CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu"]
    command += ["--disable-dev-shm-usage"]  # which in a container may be too small for several
    command += ["--remote-debugging-pipe", f"--user-data-dir={profile}", "about:blank"]
    shell = f'exec "$@" 3<&{read_commands} 4>&{write_answers}'
    process = subprocess.Popen(
        ["bash", "-c", shell, "bash", *command],
        pass_fds=(read_commands, write_answers),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "HOME": str(profile)},
    )
    os.close(read_commands)
    os.close(write_answers)
    browser = Browser(process, send, receive)
    try:
        yield browser
    finally:
        os.close(send)  # it ends with its pipe
        os.close(receive)
        try:
            process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
