"""Dynamic batching: requests of many threads are collected and scored together in one.

The first request that waits opens a batch; it is closed when it holds ``most`` conversations or
``seconds`` have passed. A request is never split, so its answer comes from one batch.

What a request gets is either its scores, checked one by one, or an error of its own: where a
batch fails, its requests are asked again one at a time, and only the culprits fail.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from nemotron_style.runtime.errors import InputError
from nemotron_style.steps.blocks.exposition import Count, Histogram
from nemotron_style.steps.blocks.scorer import Message, Scored, Scorer, read_scored

SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
FAILURES_TO_DESPAIR = 20


class Full(Exception):
    """The queue holds as much as it may; ``seconds`` until it is worth asking again."""

    def __init__(self, seconds: int) -> None:
        super().__init__(f"the queue is full; ask again in {seconds} s")
        self.seconds = seconds


class Closed(Exception):
    """Nothing is taken any more."""


class Failed(Exception):
    """The model gave no usable scores for this request."""


@dataclass
class Job:
    """One request: its conversations, and in the end its scores or its error."""

    conversations: Sequence[Sequence[Message]]
    done: threading.Event = field(default_factory=threading.Event)
    scores: list[Scored] = field(default_factory=list)
    error: Exception | None = None
    abandoned: bool = False
    arrived: float = field(default_factory=time.monotonic)

    def settle(self, scores: list[Scored], error: Exception | None = None) -> None:
        self.scores, self.error = scores, error
        self.done.set()


@dataclass
class Batcher:
    """Start with :meth:`start`; :meth:`score` may be called from any thread."""

    scorer: Scorer
    most: int
    seconds: float
    queued_most: int
    say: Callable[[str], None] = print
    batches: Count = field(default_factory=lambda: Count("reward_batches_total", "Batches scored."))
    sizes: Histogram = field(
        default_factory=lambda: Histogram(
            "reward_batch_conversations", "Conversations in a batch.", bounds=SIZES
        )
    )
    durations: Histogram = field(
        default_factory=lambda: Histogram(
            "reward_batch_seconds", "Seconds the model took for a batch.", bounds=SECONDS
        )
    )
    queue: deque[Job] = field(default_factory=deque)
    queued: int = 0
    closed: bool = False
    failures: int = 0
    thread: threading.Thread | None = None

    def __post_init__(self) -> None:
        self.changed = threading.Condition()

    def start(self) -> None:
        self.thread = threading.Thread(target=self._work, name="batcher", daemon=True)
        self.thread.start()

    @property
    def desperate(self) -> bool:
        """Whether the model failed so often in a row that there is no use in asking it again."""
        return self.failures >= FAILURES_TO_DESPAIR

    def score(self, conversations: Sequence[Sequence[Message]], *, timeout: float) -> list[Scored]:
        """The scores of one request, once its batch is done.

        Raises ``Full``, ``Closed``, ``TimeoutError``, ``Failed``, or the model's ``InputError``.
        """
        job = Job(conversations)
        with self.changed:
            if self.closed:
                raise Closed
            if self.queue and self.queued + len(conversations) > self.queued_most:
                raise Full(self._estimate())
            self.queue.append(job)
            self.queued += len(conversations)
            self.changed.notify_all()
        if not job.done.wait(timeout):
            job.abandoned = True
            raise TimeoutError(f"not scored within {timeout:g} s")
        if job.error:
            raise job.error
        return job.scores

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
        scored = max(self.sizes.sum, 1.0)
        return min(max(round(self.queued * self.durations.sum / scored), 1), 60)

    def _work(self) -> None:
        while batch := self._collect():
            live = [job for job in batch if not job.abandoned]
            if live:
                self._answer(live)

    def _collect(self) -> list[Job]:
        """The next batch; an empty list when it is closed and nothing waits."""
        with self.changed:
            while not self.queue and not self.closed:
                self.changed.wait()
            while self.queued < self.most and not self.closed:
                left = self.queue[0].arrived + self.seconds - time.monotonic()
                if left <= 0 or not self.changed.wait(left):
                    break
            batch: list[Job] = []
            size = 0
            while self.queue and (
                not batch or size + len(self.queue[0].conversations) <= self.most
            ):
                batch.append(self.queue.popleft())
                size += len(batch[-1].conversations)
            self.queued -= size
            return batch

    def _answer(self, batch: Sequence[Job]) -> None:
        """Settle every request of a batch, whatever the model does."""
        whole = [conversation for job in batch for conversation in job.conversations]
        try:
            results = self._ask(whole)
        except BaseException as error:  # whatever it is, somebody waits for an answer
            if len(batch) > 1:
                for job in batch:
                    self._answer([job])
            else:
                self._refuse(batch[0], error)
            return
        at = 0
        for job in batch:
            part = results[at : at + len(job.conversations)]
            at += len(part)
            self._deliver(job, part)

    def _ask(self, conversations: Sequence[Sequence[Message]]) -> list[object]:
        begun = time.monotonic()
        try:
            results = list(self.scorer.score(conversations))
        finally:
            self.batches.add()
            self.sizes.observe(len(conversations))
            self.durations.observe(time.monotonic() - begun)
        if len(results) != len(conversations):
            raise Failed(f"{len(results)} scores for {len(conversations)} conversations")
        return results

    def _deliver(self, job: Job, results: Sequence[object]) -> None:
        scores = []
        try:
            for one in results:
                score, attributes = getattr(one, "score", None), getattr(one, "attributes", None)
                scores.append(read_scored(score, attributes, self.scorer.outputs))
        except ValueError as error:
            return self._refuse(job, Failed(str(error)))
        self.failures = 0
        return job.settle(scores)

    def _refuse(self, job: Job, error: BaseException) -> None:
        if isinstance(error, InputError):
            return job.settle([], error)
        self.failures += 1
        told = str(error) if isinstance(error, Failed) else f"{type(error).__name__}: {error}"
        self.say(f"a request was not scored: {told.splitlines()[0][:300]}")
        return job.settle([], Failed("the model gave no usable score"))
