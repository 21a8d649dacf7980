"""Dynamic batching: requests that come one by one are collected and given to a model together.

The first request that waits opens a batch; it is closed when it holds as much as it may or its
time has passed. A request is never split, so its answer comes from one batch.

What a request gets is either its results, checked one by one, or an error of its own: where a
batch fails, its requests are tried again one at a time, and only the culprits fail.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from nemotron_style.runtime.errors import InputError
from nemotron_style.steps.blocks.serving.metrics import SECONDS, UNITS_IN_A_BATCH

FAILURES_UNTIL_UNHEALTHY = 20


class Full(Exception):
    """The queue holds as much as it may; ``seconds`` until it is worth asking again."""

    def __init__(self, seconds: int) -> None:
        super().__init__(f"the queue is full; ask again in {seconds} s")
        self.seconds = seconds


class Closed(Exception):
    """Nothing is taken any more."""


class Failed(Exception):
    """The model gave nothing usable for this request."""


@dataclass(frozen=True)
class Naming:
    """Words for what is done: ``reward``, ``conversations``, ``scored``, ``score``."""

    prefix: str
    units: str
    done: str
    result: str


@dataclass(frozen=True)
class Batching:
    """Up to ``most`` units in a batch, collected for ``seconds``; ``queued`` may wait."""

    most: int
    seconds: float
    queued: int


@dataclass
class Job:
    """One request: its items, how many units they are, and who waits for the results."""

    items: Sequence[Any]
    size: int
    future: Future[list[Any]] = field(default_factory=Future)
    arrived: float = field(default_factory=time.monotonic)


class Batcher:
    """Works in a thread of its own; :meth:`submit` may be called from any other.

    ``work`` gives one result for each item, in their order, and may raise ``InputError`` for one
    that it cannot take. ``check`` gives out an item's result, or raises ``ValueError``.
    """

    def __init__(
        self,
        batching: Batching,
        naming: Naming,
        registry: CollectorRegistry,
        *,
        work: Callable[[Sequence[Any]], Sequence[Any]],
        check: Callable[[Any, Any], Any],
        say: Callable[[str], None] = print,
    ) -> None:
        self.work, self.check = work, check
        self.batching, self.naming, self.say = batching, naming, say
        self.queue: deque[Job] = deque()
        self.queued = 0
        self.closed = False
        self.failures = 0
        self.units_done, self.seconds_worked = 0, 0.0
        self.changed = threading.Condition()
        prefix, units = naming.prefix, naming.units
        self.batches = Counter(
            f"{prefix}_batches_total", f"Batches {naming.done}.", registry=registry
        )
        self.sizes = Histogram(
            f"{prefix}_batch_{units}",
            f"{units.capitalize()} in a batch.",
            buckets=UNITS_IN_A_BATCH,
            registry=registry,
        )
        self.durations = Histogram(
            f"{prefix}_batch_seconds",
            "Seconds the model took for a batch.",
            buckets=SECONDS,
            registry=registry,
        )
        waiting = Gauge(
            f"{prefix}_queue_{units}", f"{units.capitalize()} waiting.", registry=registry
        )
        waiting.set_function(lambda: self.queued)
        self.thread = threading.Thread(target=self._run, name="batcher", daemon=True)
        self.thread.start()

    @property
    def is_unhealthy(self) -> bool:
        """Whether the model failed so often in a row that there is no use in asking it again."""
        return self.failures >= FAILURES_UNTIL_UNHEALTHY

    def submit(self, items: Sequence[Any], *, size: int) -> Future[list[Any]]:
        """The results of one request of ``size`` units, once its batch is done.

        The future holds them, or ``Failed``, or the model's ``InputError``. Cancelled before its
        batch begins, the request is not worked on. Raises ``Full`` and ``Closed``.
        """
        job = Job(items, size)
        with self.changed:
            if self.closed:
                raise Closed
            if self.queue and self.queued + size > self.batching.queued:
                raise Full(self._estimate())
            self.queue.append(job)
            self.queued += size
            if len(self.queue) == 1 or self.queued >= self.batching.most:
                self.changed.notify_all()  # others only add to a batch that is open anyway
        return job.future

    def close(self, timeout: float) -> bool:
        """Take nothing more and answer what waits; False when that took too long."""
        with self.changed:
            self.closed = True
            self.changed.notify_all()
        self.thread.join(timeout)
        return not self.thread.is_alive()

    def _estimate(self) -> int:
        """Whole seconds until the queue is empty, as far as earlier batches tell."""
        return min(max(round(self.queued * self.seconds_worked / max(self.units_done, 1)), 1), 60)

    def _run(self) -> None:
        while batch := self._collect():
            live = [job for job in batch if job.future.set_running_or_notify_cancel()]
            if live:
                self._answer(live)

    def _collect(self) -> list[Job]:
        """The next batch; an empty list when it is closed and nothing waits."""
        most = self.batching.most
        with self.changed:
            while not self.queue and not self.closed:
                self.changed.wait()
            while self.queued < most and not self.closed:
                left = self.queue[0].arrived + self.batching.seconds - time.monotonic()
                if left <= 0 or not self.changed.wait(left):
                    break
            batch: list[Job] = []
            size = 0
            while self.queue and (not batch or size + self.queue[0].size <= most):
                batch.append(self.queue.popleft())
                size += batch[-1].size
            self.queued -= size
            return batch

    def _answer(self, batch: Sequence[Job]) -> None:
        """Give every request of a batch its results or its error, whatever the model does."""
        try:
            results = self._ask(batch)
        except BaseException as error:  # whatever it is, somebody waits for an answer
            if len(batch) == 1:
                return self._fail(batch[0], error)
            for job in batch:
                self._answer([job])
            return None
        rest = iter(results)
        for job in batch:
            own = list(islice(rest, len(job.items)))  # taken even where one of them is refused
            try:
                checked = [self.check(*pair) for pair in zip(job.items, own, strict=True)]
            except Exception as error:  # as above
                self._fail(job, error)
            else:
                self.failures = 0
                job.future.set_result(checked)
        return None

    def _ask(self, batch: Sequence[Job]) -> list[Any]:
        items = [item for job in batch for item in job.items]
        size, begun = sum(job.size for job in batch), time.monotonic()
        try:
            results = list(self.work(items))
        finally:
            seconds = time.monotonic() - begun
            self.batches.inc()
            self.sizes.observe(size)
            self.durations.observe(seconds)
            self.units_done += size
            self.seconds_worked += seconds
        if len(results) != len(items):
            raise Failed(f"{len(results)} results for {len(items)} questions")
        return results

    def _fail(self, job: Job, error: BaseException) -> None:
        if isinstance(error, InputError):
            return job.future.set_exception(error)
        self.failures += 1
        what = str(error) if isinstance(error, Failed) else f"{type(error).__name__}: {error}"
        self.say(f"a request was not {self.naming.done}: {what.splitlines()[0][:300]}")
        failed = Failed(f"the model gave no usable {self.naming.result}")
        return job.future.set_exception(failed)
