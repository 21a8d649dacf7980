"""The remote reward model, asked by rank 0 while the next samples are drawn.

All ranks hold a :class:`Judge` and call it alike; what rank 0 is told, and what goes wrong with
it, comes back on every rank.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Self

from nemotron_style.steps.blocks.model.rank_zero import RankZero
from nemotron_style.steps.blocks.reward.client import Health, RewardClient
from nemotron_style.steps.blocks.reward.types import Message, RewardScore

AT_ONCE = 4
"""Lots of conversations that are under way at a time."""


class Judge:
    """Scores in the order of asking, whatever the order of arrival. A context manager."""

    def __init__(self, client: RewardClient | None) -> None:
        """``client`` on rank 0, None on the others; every rank calls it."""
        self.client = client
        self._pool = ThreadPoolExecutor(AT_ONCE, thread_name_prefix="judge") if client else None
        self._asked: list[Future[list[RewardScore]]] = []
        self._is_over = False
        if client:
            stopping = client.stopping
            client.stopping = lambda: self._is_over or stopping()
        self._rank_zero = RankZero()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over = True  # what is still under way is not repeated
        if self.client and self._pool:
            self._pool.shutdown(wait=False, cancel_futures=True)
            self.client.close()

    def wait_ready(self, seconds: float) -> Health:
        """The reward model, once it is ready. Raises RewardUnavailable after ``seconds``."""

        def wait() -> Health:
            assert self.client
            return self.client.wait_ready(seconds)

        return self._rank_zero.run(wait)

    def ask(self, conversations: Sequence[Sequence[Message]]) -> None:
        """Have conversations scored; returns at once."""
        if self.client and self._pool:
            self._asked.append(self._pool.submit(self.client.score, conversations))

    def collect(self) -> list[RewardScore]:
        """The scores of everything that was asked since the last call.

        Raises RewardUnavailable, or Interrupted when the run was asked to stop.
        """
        asked, self._asked = self._asked, []
        return self._rank_zero.run(lambda: [scored for each in asked for scored in each.result()])

    def gather(self, mine: Any) -> list[Any]:
        """What every rank gives, in the order of ranks."""
        return self._rank_zero.gather(mine)

    @property
    def counts(self) -> dict[str, int]:
        """What the client has counted so far, retries and faults by kind; empty elsewhere."""
        return self.client.counts if self.client else {}
