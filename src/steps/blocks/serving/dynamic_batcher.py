"""Dynamic batching: requests of many threads are collected and given to a model together.

The first request that waits opens a batch; it is closed when it holds as much as it may or its
time has passed. A request is never split, so its answer comes from one batch.

What a request gets is either its results, checked one by one, or an error of its own: where a
batch fails, its requests are asked again one at a time, and only the culprits fail.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from nemotron_style.runtime.errors import InputError
from nemotron_style.steps.blocks.http.error import ClientDisconnected
from nemotron_style.steps.blocks.serving.metrics_page import Count, Histogram

SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
FAILURES_TO_DESPAIR = 20
SECONDS_BETWEEN_LOOKS = 0.25
"""How often a client that waits is looked after."""


class Full(Exception):
    """The queue holds as much as it may; ``seconds`` until it is worth asking again."""

    def __init__(self, seconds: int) -> None:
        super().__init__(f"the queue is full; ask again in {seconds} s")
        self.seconds = seconds


class Closed(Exception):
    """Nothing is taken any more."""


class Failed(Exception):
    """The model gave nothing usable for this request."""


class Worker(Protocol):
    """Whatever does the work. Called by one thread alone."""

    def work(self, items: Sequence[Any]) -> Sequence[Any]:
        """One result for each item, in their order; ``InputError`` for one it cannot take."""

    def check(self, item: Any, result: Any) -> Any:
        """The result as it is given out. Raises ``ValueError`` for what is none."""


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
    """One request: its items, how many units they are, and in the end its results or its error."""

    items: Sequence[Any]
    size: int
    done: threading.Event = field(default_factory=threading.Event)
    results: list[Any] = field(default_factory=list)
    error: Exception | None = None
    abandoned: bool = False
    arrived: float = field(default_factory=time.monotonic)

    def settle(self, results: list[Any], error: Exception | None = None) -> None:
        self.results, self.error = results, error
        self.done.set()


@dataclass
class Batcher:
    """Start with :meth:`start`; :meth:`ask` may be called from any thread."""

    worker: Worker
    batching: Batching
    naming: Naming
    say: Callable[[str], None] = print
    queue: deque[Job] = field(default_factory=deque)
    queued: int = 0
    closed: bool = False
    failures: int = 0
    thread: threading.Thread | None = None

    def __post_init__(self) -> None:
        self.changed = threading.Condition()
        prefix, units, done = self.naming.prefix, self.naming.units, self.naming.done
        self.batches = Count(f"{prefix}_batches_total", f"Batches {done}.")
        self.sizes = Histogram(
            f"{prefix}_batch_{units}", f"{units.capitalize()} in a batch.", bounds=SIZES
        )
        self.durations = Histogram(
            f"{prefix}_batch_seconds", "Seconds the model took for a batch.", bounds=SECONDS
        )

    def start(self) -> None:
        self.thread = threading.Thread(target=self._work, name="batcher", daemon=True)
        self.thread.start()

    @property
    def desperate(self) -> bool:
        """Whether the model failed so often in a row that there is no use in asking it again."""
        return self.failures >= FAILURES_TO_DESPAIR

    def ask(
        self,
        items: Sequence[Any],
        *,
        size: int,
        timeout: float,
        gone: Callable[[], bool] | None = None,
    ) -> list[Any]:
        """The results of one request of ``size`` units, once its batch is done.

        Raises ``Full``, ``Closed``, ``TimeoutError``, ``Failed``, the model's ``InputError``, and
        ``ClientDisconnected`` when ``gone`` turns true. A request that is given up while it waits
        is not worked on.
        """
        job = Job(items, size)
        with self.changed:
            if self.closed:
                raise Closed
            if self.queue and self.queued + size > self.batching.queued:
                raise Full(self._estimate())
            self.queue.append(job)
            self.queued += size
            self.changed.notify_all()
        try:
            self._await(job, timeout, gone)
        finally:
            job.abandoned = not job.done.is_set()
        if job.error:
            raise job.error
        return job.results

    def _await(self, job: Job, timeout: float, gone: Callable[[], bool] | None) -> None:
        end = time.monotonic() + timeout
        pause = SECONDS_BETWEEN_LOOKS if gone else timeout
        while not job.done.wait(max(min(pause, end - time.monotonic()), 0)):
            if time.monotonic() >= end:
                raise TimeoutError(f"not {self.naming.done} within {timeout:g} s")
            if gone and gone():
                raise ClientDisconnected

    def close(self, timeout: float) -> bool:
        """Take nothing more and answer what waits; False when that took too long."""
        with self.changed:
            self.closed = True
            self.changed.notify_all()
        if self.thread is None:
            return True
        self.thread.join(timeout)
        return not self.thread.is_alive()

    def _estimate(self) -> int:
        """Whole seconds until the queue is empty, as far as earlier batches tell."""
        done = max(self.sizes.sum, 1.0)
        return min(max(round(self.queued * self.durations.sum / done), 1), 60)

    def _work(self) -> None:
        while batch := self._collect():
            live = [job for job in batch if not job.abandoned]
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
        """Settle every request of a batch, whatever the model does."""
        try:
            results = self._ask(batch)
        except BaseException as error:  # whatever it is, somebody waits for an answer
            if len(batch) > 1:
                for job in batch:
                    self._answer([job])
            else:
                self._refuse(batch[0], error)
            return
        at = 0
        for job in batch:
            part = results[at : at + len(job.items)]
            at += len(part)
            self._deliver(job, part)

    def _ask(self, batch: Sequence[Job]) -> list[Any]:
        items = [item for job in batch for item in job.items]
        begun = time.monotonic()
        try:
            results = list(self.worker.work(items))
        finally:
            self.batches.add()
            self.sizes.observe(sum(job.size for job in batch))
            self.durations.observe(time.monotonic() - begun)
        if len(results) != len(items):
            raise Failed(f"{len(results)} results for {len(items)} questions")
        return results

    def _deliver(self, job: Job, results: Sequence[Any]) -> None:
        pairs = zip(job.items, results, strict=True)
        try:
            checked = [self.worker.check(item, result) for item, result in pairs]
        except Exception as error:  # as above
            return self._refuse(job, error)
        self.failures = 0
        return job.settle(checked)

    def _refuse(self, job: Job, error: BaseException) -> None:
        if isinstance(error, InputError):
            return job.settle([], error)
        self.failures += 1
        told = str(error) if isinstance(error, Failed) else f"{type(error).__name__}: {error}"
        self.say(f"a request was not {self.naming.done}: {told.splitlines()[0][:300]}")
        return job.settle([], Failed(f"the model gave no usable {self.naming.result}"))
