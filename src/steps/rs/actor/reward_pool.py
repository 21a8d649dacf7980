"""The remote reward model: rank zero asks it in threads, while the next are sampled."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Self

from nemotron_style.runtime.errors import InputError, Interrupted, Problem
from nemotron_style.runtime.step.context import StepContext
from nemotron_style.runtime.step.metrics import Metrics
from nemotron_style.steps.blocks.http.endpoint import Address, read_address, read_token
from nemotron_style.steps.blocks.http.retry import RetryPolicy
from nemotron_style.steps.blocks.model.rank_zero import RankZero
from nemotron_style.steps.blocks.reward.client import Health, RewardClient, RewardUnavailable
from nemotron_style.steps.blocks.reward.types import Message, RewardScore
from nemotron_style.steps.rs.actor.config import Config

AT_ONCE = 4
"""Lots of conversations that are under way at a time."""


class RewardPool:
    """Scores conversations in the order they were submitted. A context manager.

    Every rank holds one and calls it alike; scores and errors are the same on all of them.
    """

    def __init__(self, client: RewardClient | None) -> None:
        """``client`` is None on all ranks but zero."""
        self.client = client
        self.rank_zero = RankZero()
        self._threads = ThreadPoolExecutor(AT_ONCE, thread_name_prefix="reward") if client else None
        self._submitted: list[Future[list[RewardScore]]] = []
        self._logged: dict[str, int] = {}
        self._is_over = False
        if client:
            stopping = client.stopping
            client.stopping = lambda: self._is_over or stopping()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over = True  # requests that are still under way are not repeated
        if self.client and self._threads:
            self._threads.shutdown(wait=False, cancel_futures=True)
            self.client.close()

    def wait_ready(self, seconds: float) -> Health:
        """The reward model, once it is ready. Raises RewardUnavailable after ``seconds``."""

        def wait() -> Health:
            assert self.client
            return self.client.wait_ready(seconds)

        health = self.rank_zero.run(wait)
        self.take_counts()
        return health

    def submit(self, conversations: Sequence[Sequence[Message]]) -> None:
        """Have conversations scored; returns at once."""
        if self.client and self._threads:
            self._submitted.append(self._threads.submit(self.client.score, conversations))

    def collect(self) -> list[RewardScore]:
        """The scores of everything that was submitted since the last call.

        Raises RewardUnavailable, or Interrupted when the run was told to stop.
        """
        submitted, self._submitted = self._submitted, []
        return self.rank_zero.run(
            lambda: [score for future in submitted for score in future.result()]
        )

    def take_counts(self) -> dict[str, int]:
        """What the client counted since the last call, under the names of metrics."""
        before, self._logged = self._logged, dict(self.client.counts) if self.client else {}
        return {f"rm_{name}": number - before.get(name, 0) for name, number in self._logged.items()}

    @contextmanager
    def log_failure(self, metrics: Metrics, step: int) -> Iterator[None]:
        """Log what was counted also where the reward model, or a stop, ends ``step`` early."""
        try:
            yield
        except (RewardUnavailable, Interrupted):
            metrics.log(step, **self.take_counts())
            raise


def open_client(config: Config, ctx: StepContext) -> RewardClient:
    """The client of the reward model that the config names."""
    waiting = config.remote_rm.waiting
    return RewardClient(
        find_address(config, ctx),
        token=read_token(config.remote_rm.token_env),
        retry_policy=RetryPolicy(
            tries=waiting.tries,
            timeout=waiting.timeout,
            first_pause=waiting.first_pause,
            longest_pause=waiting.longest_pause,
        ),
        seed=config.seed,
        stopping=lambda: ctx.stopping,
        say=ctx.say,
    )


def find_address(config: Config, ctx: StepContext) -> Address:
    """The address that the config names, or that of the service that was started beside the step.

    Raises InputError when there is neither, StepFailed when the service ended instead.
    """
    if config.address is not None:
        return config.address
    url = ctx.service("reward")
    if url is not None:
        return read_address(url)
    raise InputError(
        Problem(
            key="remote_rm.host",
            what="no reward model is named",
            fix="start one with reward/serve and set remote_rm.host and remote_rm.port",
        )
    )
