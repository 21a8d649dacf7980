"""A service that is asked until it answers, within bounds; no torch.

What the reward model's client and the judge's have in common: the pauses between two tries, the
counts, the bounded number of requests at once, and the stop of those that no longer matter.
"""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import Self, TypeVar

from nemotron_style.runtime.errors import Interrupted
from nemotron_style.steps.blocks.http.client import Fault, HttpClient
from nemotron_style.steps.blocks.http.endpoint import Address, read_address

LAST_FAULTS = 3
REFUSALS = ("http_401", "http_403")
SECONDS_BETWEEN_LOOKS = 0.5
LEAST_TIMEOUT = 0.05

Answer = TypeVar("Answer")


class Stopped(Exception):
    """Another request has failed for good; this one is not worth going on with."""


class RetriesExhausted(Exception):
    """No try brought an answer. ``faults`` in their order; ``permanent`` as the last one was.

    ``is_refused`` tells that it refused the token.
    """

    def __init__(self, faults: Sequence[Fault]) -> None:
        super().__init__(fault_summary(faults))
        self.faults = tuple(faults)
        self.permanent = bool(faults) and faults[-1].permanent
        self.is_refused = bool(faults) and faults[-1].kind in REFUSALS


@dataclass(frozen=True)
class RetryPolicy:
    """How often and how long it is asked.

    One try takes at most ``timeout`` seconds; between two lie ``first_pause`` seconds, then twice
    as long and so on up to ``longest_pause``, half of it by chance. A ``Retry-After`` stands
    before that, up to ``longest_pause`` too.
    """

    tries: int = 8
    timeout: float = 120.0
    first_pause: float = 0.5
    longest_pause: float = 30.0

    def pause(self, number: int, chance: float, asked: float | None) -> float:
        """Seconds after the ``number``-th failure (from 0); ``chance`` lies in [0, 1)."""
        pause = min(self.first_pause * 2.0 ** min(number, 60), self.longest_pause)
        pause *= 0.5 + 0.5 * chance
        return pause if asked is None else min(max(asked, pause), self.longest_pause)


@dataclass
class RetryingClient:
    """Asks one service. A context manager; may be used from many threads.

    ``at_once`` requests are under way at a time. ``seed`` makes the pauses repeatable.
    ``stopping`` is asked between tries (a context's flag): when it turns true, ``Interrupted`` is
    raised. ``clock`` is that of :mod:`time`, ``sleep`` stands in for waiting.
    """

    address: Address | str
    token: str | None = field(default=None, repr=False)
    retry_policy: RetryPolicy = RetryPolicy()
    at_once: int = 4
    seed: int | None = None
    clock: Callable[[], float] = field(default=time.monotonic, repr=False)
    sleep: Callable[[float], None] | None = field(default=None, repr=False)
    stopping: Callable[[], bool] = field(default=lambda: False, repr=False)

    name = "service"

    def __post_init__(self) -> None:
        if isinstance(self.address, str):
            self.address = read_address(self.address)
        self._http = HttpClient(self.address, self.token)
        self._random = random.Random(self.seed)
        self._lock = threading.Lock()
        self._counts: Counter[str] = Counter()
        self._pool = ThreadPoolExecutor(self.at_once, thread_name_prefix=self.name)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of threads and connections."""
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._http.close()

    @property
    def counts(self) -> dict[str, int]:
        """For metrics: ``requests``, ``retries``, ``failed_<kind>``, ``given_up`` ..."""
        with self._lock:
            return dict(self._counts)

    def retry(self, ask: Callable[[], Answer], stop: threading.Event) -> Answer:
        """What ``ask`` returns, asked again after each ``Fault``. Raises ``RetriesExhausted``."""
        faults: list[Fault] = []
        for number in range(self.retry_policy.tries):
            try:
                return ask()
            except Fault as fault:
                faults.append(fault)
                self._count(f"failed_{fault.kind}")
                if fault.permanent:
                    break
                if number + 1 < self.retry_policy.tries:
                    self._count("retries")
                    pause = self.retry_policy.pause(number, self._chance(), fault.retry_after)
                    self._pause(pause, stop)
        raise RetriesExhausted(faults)

    def wait_until(self, look: Callable[[float], Answer], seconds: float) -> Answer:
        """What ``look(timeout)`` returns, once it raises no ``Fault``.

        Raises ``RetriesExhausted`` after ``seconds``, or at once when the token is refused.
        """
        end, faults = self.clock() + seconds, list[Fault]()
        while (left := end - self.clock()) > 0:
            try:
                return look(min(self.retry_policy.timeout, max(left, LEAST_TIMEOUT)))
            except Fault as fault:
                faults.append(fault)
                self._count(f"failed_{fault.kind}")
                if fault.kind in REFUSALS:
                    break
                pause = self.retry_policy.pause(len(faults) - 1, self._chance(), fault.retry_after)
                self._pause(min(pause, max(end - self.clock(), 0.0)), threading.Event())
        raise RetriesExhausted(faults)

    def gather(self, jobs: Sequence[Callable[[], Answer]], stop: threading.Event) -> list[Answer]:
        """What every job returns, in their order; with the first that raises, all are stopped."""

        def run(job: Callable[[], Answer]) -> Answer:
            if stop.is_set():
                raise Stopped
            try:
                return job()
            except BaseException:
                stop.set()
                raise

        futures = [self._pool.submit(run, job) for job in jobs]
        _, waiting = wait(futures, return_when=FIRST_EXCEPTION)
        for future in waiting:
            future.cancel()
        wait(waiting)
        for future in futures:
            error = None if future.cancelled() else future.exception()
            if error is not None and not isinstance(error, Stopped):
                raise error
        return [future.result() for future in futures]

    def _pause(self, seconds: float, stop: threading.Event) -> None:
        """Wait. Raises ``Stopped`` or ``Interrupted`` as soon as there is no use in it."""
        end = self.clock() + seconds
        while True:
            if stop.is_set():
                raise Stopped
            if self.stopping():
                raise Interrupted(f"stopped while the {self.name} was waited for")
            left = end - self.clock()
            if self.sleep is not None:
                return self.sleep(seconds)
            if left <= 0:
                return None
            stop.wait(min(left, SECONDS_BETWEEN_LOOKS))

    def _chance(self) -> float:
        with self._lock:
            return self._random.random()

    def _count(self, name: str, number: int = 1) -> None:
        with self._lock:
            self._counts[name] += number


def fault_summary(faults: Sequence[Fault]) -> str:
    """How often it was tried, and what came of it: `` (3 tries: 2 x timeout, 1 x http_503)``."""
    if not faults:
        return ""
    kinds = Counter(fault.kind for fault in faults)
    told = ", ".join(f"{number} x {kind}" for kind, number in kinds.most_common())
    times = "1 try" if len(faults) == 1 else f"{len(faults)} tries"
    return f" ({times}: {told})"


def last_messages(faults: Sequence[Fault]) -> str:
    """What the last faults said, each once."""
    return "; ".join(dict.fromkeys(fault.message for fault in faults[-LAST_FAULTS:]))
