"""A client of one service that asks again, within bounds, until it has an answer; no torch.

What the clients of the reward model and of the judge have in common: the pauses between two tries
(by tenacity), the counts, and the bounded number of requests at once.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Self, TypeVar

from tenacity import AsyncRetrying, RetryCallState, retry_if_exception, wait_exponential
from tenacity.stop import stop_after_attempt, stop_after_delay

from nemotron_style.runtime.errors import Interrupted
from nemotron_style.steps.blocks.http.client import Fault, HttpClient, run
from nemotron_style.steps.blocks.http.endpoint import Address, read_address

SHOWN_FAULTS = 3
UNAUTHORIZED = ("http_401", "http_403")
SECONDS_BETWEEN_CHECKS = 0.5
MIN_TIMEOUT = 0.05

Answer = TypeVar("Answer")


class RetriesExhausted(Exception):
    """No try brought an answer. ``faults`` are in their order; the last one decides the rest."""

    def __init__(self, faults: Sequence[Fault]) -> None:
        super().__init__(fault_summary(faults))
        self.faults = tuple(faults)
        self.permanent = faults[-1].permanent
        self.is_unauthorized = faults[-1].kind in UNAUTHORIZED


@dataclass(frozen=True)
class RetryPolicy:
    """How often a request is tried, and how long the pauses are.

    One try takes at most ``timeout`` seconds. The first pause is ``first_pause`` seconds, each
    further one twice as long up to ``longest_pause``, and half of each is left to chance. A
    ``Retry-After`` makes a pause longer, up to ``longest_pause`` too.
    """

    tries: int = 8
    timeout: float = 120.0
    first_pause: float = 0.5
    longest_pause: float = 30.0

    def pause(self, state: RetryCallState, jitter: float) -> float:
        """Seconds to wait after the failure in ``state``; ``jitter`` lies in [0, 1)."""
        backoff = wait_exponential(multiplier=self.first_pause, max=self.longest_pause)(state)
        backoff *= 0.5 + 0.5 * jitter
        fault = state.outcome.exception() if state.outcome else None
        wanted = getattr(fault, "retry_after", None)
        return backoff if wanted is None else min(max(wanted, backoff), self.longest_pause)


@dataclass
class RetryingClient:
    """Asks one service. A context manager; may be used from many threads.

    ``at_once`` requests are under way at a time. ``seed`` makes the pauses repeatable. ``stopping``
    is a context's flag: once it is true, pauses end with ``Interrupted``. ``say`` tells a person
    what is waited for. ``sleep`` takes the place of waiting, for tests.
    """

    address: Address | str
    token: str | None = field(default=None, repr=False)
    retry_policy: RetryPolicy = RetryPolicy()
    at_once: int = 4
    seed: int | None = None
    sleep: Callable[[float], None] | None = field(default=None, repr=False)
    stopping: Callable[[], bool] = field(default=lambda: False, repr=False)
    say: Callable[[str], None] = field(default=lambda _line: None, repr=False)

    name = "service"

    def __post_init__(self) -> None:
        if isinstance(self.address, str):
            self.address = read_address(self.address)
        self._http = HttpClient(self.address, self.token)
        self._random = random.Random(self.seed)
        self._counts: Counter[str] = Counter()
        self._slots = asyncio.Semaphore(self.at_once)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the connections."""
        run(self._http.aclose())

    @property
    def counts(self) -> dict[str, int]:
        """For metrics: ``requests``, ``retries``, ``failed_<kind>``, ``given_up`` ..."""
        return dict(self._counts)

    def count(self, name: str, number: int = 1) -> None:
        self._counts[name] += number

    def run_all(self, jobs: Sequence[Callable[[], Awaitable[Answer]]]) -> list[Answer]:
        """What all jobs return, in their order; the first that raises ends the others."""

        async def do(job: Callable[[], Awaitable[Answer]]) -> Answer:
            async with self._slots:
                return await job()

        async def gather() -> list[Answer]:
            tasks = [asyncio.ensure_future(do(job)) for job in jobs]
            try:
                return await asyncio.gather(*tasks)
            finally:
                for task in tasks:
                    task.cancel()

        return run(gather())

    async def retry(self, ask: Callable[[], Awaitable[Answer]]) -> Answer:
        """What ``ask`` returns, asked again after each ``Fault``. Raises ``RetriesExhausted``."""
        return await self._retry(
            ask,
            is_final=lambda fault: fault.permanent,
            stop=stop_after_attempt(self.retry_policy.tries),
            wait=self._pause_after,
            before_sleep=lambda _: self.count("retries"),
        )

    def wait_until(self, look: Callable[[float], Awaitable[Answer]], seconds: float) -> Answer:
        """What ``look(timeout)`` returns, once it raises no ``Fault``.

        Raises ``RetriesExhausted`` after ``seconds``, or at once when the token is refused. Other
        permanent faults are waited out: a service that starts may not know its paths yet. What
        holds it up is said, each reason once.
        """
        end = time.monotonic() + seconds
        said: set[str] = set()

        def time_left(least: float = 0.0) -> float:
            return max(end - time.monotonic(), least)

        async def look_once() -> Answer:
            try:
                return await look(min(self.retry_policy.timeout, time_left(MIN_TIMEOUT)))
            except Fault as fault:
                if fault.message not in said:
                    said.add(fault.message)
                    waiting = f"waiting up to {time_left():.0f} s for the {self.name}"
                    self.say(f"{waiting} at {self.address}: {fault.message}")
                raise

        work = self._retry(
            look_once,
            is_final=lambda fault: fault.kind in UNAUTHORIZED,
            stop=stop_after_delay(seconds),
            wait=lambda state: min(self._pause_after(state), time_left()),
        )
        return run(work)

    async def _retry(
        self,
        ask: Callable[[], Awaitable[Answer]],
        *,
        is_final: Callable[[Fault], bool],
        **how: Any,
    ) -> Answer:
        faults: list[Fault] = []

        async def attempt() -> Answer:
            try:
                return await ask()
            except Fault as fault:
                faults.append(fault)
                self.count(f"failed_{fault.kind}")
                raise

        again = retry_if_exception(lambda error: isinstance(error, Fault) and not is_final(error))
        try:
            return await AsyncRetrying(retry=again, sleep=self._sleep, reraise=True, **how)(attempt)
        except Fault:
            raise RetriesExhausted(faults) from None

    def _pause_after(self, state: RetryCallState) -> float:
        return self.retry_policy.pause(state, self._random.random())

    async def _sleep(self, seconds: float) -> None:
        """Wait. Raises ``Interrupted`` soon after the run is asked to stop."""
        end = time.monotonic() + seconds
        while True:
            if self.stopping():
                raise Interrupted(f"stopped while the {self.name} was waited for")
            if self.sleep is not None:
                return self.sleep(seconds)
            left = end - time.monotonic()
            if left <= 0:
                return None
            await asyncio.sleep(min(left, SECONDS_BETWEEN_CHECKS))


def fault_summary(faults: Sequence[Fault]) -> str:
    """How often it was tried, and what came of it: `` (3 tries: 2 x timeout, 1 x http_503)``."""
    kinds = Counter(fault.kind for fault in faults)
    counted = ", ".join(f"{number} x {kind}" for kind, number in kinds.most_common())
    times = "1 try" if len(faults) == 1 else f"{len(faults)} tries"
    return f" ({times}: {counted})"


def last_messages(faults: Sequence[Fault]) -> str:
    """What the last faults said, each once."""
    return "; ".join(dict.fromkeys(fault.message for fault in faults[-SHOWN_FAULTS:]))
