"""A server of S3's protocol on this machine, for tests: moto's, in a process of its own."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from held_port import hold_port

NEEDED = ("moto", "flask", "flask_cors", "s3fs")
missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
REASON = f"needs {', '.join(missing)}: pip install 'nemotron-style[dev]'" if missing else ""

CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "test-key",
    "AWS_SECRET_ACCESS_KEY": "test-word",
    "AWS_DEFAULT_REGION": "us-east-1",
}


@dataclass(frozen=True)
class S3Server:
    """A running server; ``environment`` is what a client needs to find it."""

    url: str

    @property
    def environment(self) -> dict[str, str]:
        return {**CREDENTIALS, "AWS_ENDPOINT_URL": self.url}

    def make_bucket(self, name: str) -> None:
        """Create a bucket; moto asks nobody who it is."""
        self._request("PUT", name)

    def _request(self, method: str, path: str) -> bytes:
        request = urllib.request.Request(f"{self.url}/{path}", method=method)
        with urllib.request.urlopen(request, timeout=120) as answer:
            return bytes(answer.read())


@contextmanager
def running_s3(port: int | None = None) -> Iterator[S3Server]:
    """A server with no bucket, on a free port of the loopback; it ends with the block."""
    held = hold_port(port or 0)  # until the server listens there, and when it has ended
    port = held.getsockname()[1]
    argv = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    quiet = subprocess.DEVNULL
    process = subprocess.Popen(argv, stdin=quiet, stdout=quiet, stderr=quiet, env={**os.environ})
    try:
        _await(f"http://127.0.0.1:{port}", process)
        yield S3Server(f"http://127.0.0.1:{port}")
    finally:
        process.kill()
        process.wait()
        held.close()


def _await(url: str, process: subprocess.Popen[bytes], *, seconds: float = 180.0) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end and process.poll() is None:
        try:
            urllib.request.urlopen(f"{url}/moto-api/", timeout=60).close()
            return
        except (urllib.error.URLError, OSError):
            time.sleep(0.05)
    raise RuntimeError("moto's server did not start")
