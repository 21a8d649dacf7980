"""A store on a server of S3's protocol, behind a network that fails at random."""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from unittest.mock import patch

from faulty_proxy import FAULTS, FaultyProxy
from s3_server import running_s3

BUCKET = "faults"
SHARE = 0.05  # of the requests to which something happens
DOWN_EVERY, DOWN_FOR = 400, 6  # requests: as often, and as long, the server cannot be reached


@contextmanager
def faulty_bucket(*, share: float = SHARE, seed: int = 7) -> Iterator[FaultyProxy]:
    """A bucket, and the proxy before it at which so large a share of the requests fail."""
    with running_s3() as server, FaultyProxy(server.url).running() as proxy:
        server.make_bucket(BUCKET)
        proxy.choose = RandomFaults(share, seed).choose
        found = {**server.environment, "AWS_ENDPOINT_URL": proxy.url}
        with patch.dict(os.environ, found):
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
