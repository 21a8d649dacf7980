"""A store on a server of S3's protocol, behind a network that fails at random."""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

from faulty_proxy import FAULTS, FaultyProxy
from s3_server import running_s3
from seaweed import Seaweed, running_seaweed

BUCKET = "faults"
SHARE = 0.05  # of the requests to which something happens
DOWN_EVERY, DOWN_FOR = 400, 6  # requests: as often, and as long, the server cannot be reached


@contextmanager
def faulty_bucket(*, share: float = SHARE, seed: int = 7) -> Iterator[FaultyProxy]:
    """A bucket of moto's, and the proxy before it at which so large a share of requests fail."""
    with running_s3() as server, _behind_faults(server.url, server.environment, share, seed) as it:
        server.make_bucket(BUCKET)
        yield it


@contextmanager
def lasting_bucket(
    folder: Path, *, share: float = SHARE, seed: int = 7
) -> Iterator[tuple[FaultyProxy, Seaweed]]:
    """The same on a server that keeps its data in ``folder``, and may be killed."""
    with (
        running_seaweed(folder) as server,
        _behind_faults(server.url, server.environment, share, seed) as proxy,
    ):
        server.make_bucket(BUCKET)
        yield proxy, server


@contextmanager
def restarted(server: Seaweed, proxy: FaultyProxy, *, every: int) -> Iterator[None]:
    """The server gets a SIGKILL, and is started again, after each so many requests; 0: never."""
    stop = threading.Event()

    def restart() -> None:
        due = proxy.requests + every
        while not stop.wait(0.05):
            if proxy.requests >= due:
                server.kill()
                server.start()
                due = proxy.requests + every

    thread = threading.Thread(target=restart)
    if every:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        if every:
            thread.join()


def past_the_faults(server: Seaweed) -> AbstractContextManager[Any]:
    """A bucket that is opened within is the server itself: what there is, not what is said."""
    return patch.dict(os.environ, {"AWS_ENDPOINT_URL": server.url})


@contextmanager
def _behind_faults(
    url: str, environment: dict[str, str], share: float, seed: int
) -> Iterator[FaultyProxy]:
    with FaultyProxy(url).running() as proxy:
        proxy.choose = RandomFaults(share, seed).choose
        with patch.dict(os.environ, {**environment, "AWS_ENDPOINT_URL": proxy.url}):
            yield proxy


class RandomFaults:
    """Faults at random, and now and then a server that is out of reach for some requests."""

    def __init__(self, share: float, seed: int) -> None:
        self._share = share
        self._chance = random.Random(seed)
        self._lock = threading.Lock()
        self._requests = 0

    def choose(self, method: str, path: str) -> str:
        """The fault of the next request; empty for none."""
        with self._lock:
            self._requests += 1
            if self._share and self._requests % DOWN_EVERY < DOWN_FOR and self._requests > DOWN_FOR:
                return "cut"
            return self._chance.choice(FAULTS) if self._chance.random() < self._share else ""
