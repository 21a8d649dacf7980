"""The remote reward model, asked by rank 0 while the next samples are drawn.

All ranks hold a :class:`Judge` and call it alike; what rank 0 is told, and what goes wrong with
it, comes back on every rank.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import timedelta
from typing import Any, Self, TypeVar

import torch.distributed as dist

from nemotron_style.runtime.errors import StepsError
from nemotron_style.steps.blocks.reward.client import Health, RewardClient
from nemotron_style.steps.blocks.reward.types import Message, Scored

AT_ONCE = 4
"""Lots of conversations that are under way at a time."""

LONGEST_WAIT = timedelta(days=1)
"""How long ranks wait for the first one, whose own patience ends much earlier."""

Found = TypeVar("Found")


class Judge:
    """Scores in the order of asking, whatever the order of arrival. A context manager."""

    def __init__(self, client: RewardClient | None) -> None:
        """``client`` on rank 0, None on the others; every rank calls it."""
        self.client = client
        self._pool = ThreadPoolExecutor(AT_ONCE, thread_name_prefix="judge") if client else None
        self._asked: list[Future[list[Scored]]] = []
        self._is_over = False
        if client:
            stopping = client.stopping
            client.stopping = lambda: self._is_over or stopping()
        # Waiting for a server must not run into the deadline that training has for its own talk.
        alone = dist.get_world_size() == 1
        self._group = None if alone else dist.new_group(backend="gloo", timeout=LONGEST_WAIT)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over = True  # what is still under way is not repeated
        if self.client and self._pool:
            self._pool.shutdown(wait=False, cancel_futures=True)
            self.client.close()

    def wait_ready(self, seconds: float) -> Health:
        """The reward model, once it is ready. Raises RewardUnavailable after ``seconds``."""
        return self._share(lambda client: client.wait_ready(seconds))

    def ask(self, conversations: Sequence[Sequence[Message]]) -> None:
        """Have conversations scored; returns at once."""
        if self.client and self._pool:
            self._asked.append(self._pool.submit(self.client.score, conversations))

    def collect(self) -> list[Scored]:
        """The scores of everything that was asked since the last call.

        Raises RewardUnavailable, or Interrupted when the run was asked to stop.
        """
        asked, self._asked = self._asked, []
        return self._share(lambda _: [scored for each in asked for scored in each.result()])

    def gather(self, mine: Any) -> list[Any]:
        """What every rank gives, in the order of ranks."""
        if self._group is None:
            return [mine]
        everywhere: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(everywhere, mine, group=self._group)
        return everywhere

    @property
    def counts(self) -> dict[str, int]:
        """What the client has counted so far, retries and faults by kind; empty elsewhere."""
        return self.client.counts if self.client else {}

    def _share(self, work: Callable[[RewardClient], Found]) -> Found:
        """What ``work`` gives on rank 0, or the error that it ends with, on every rank."""
        told: list[Any] = [None, None]
        if self.client:
            try:
                told = [work(self.client), None]
            except StepsError as error:
                told = [None, error]
        if self._group is not None:
            told = self._send(told)
        found, error = told
        if error is not None:
            raise error
        return found

    def _send(self, told: list[Any]) -> list[Any]:
        error = told[1]
        plain = [told[0], error and (type(error), error.problems)]
        dist.broadcast_object_list(plain, src=0, group=self._group)
        if self.client or plain[1] is None:
            return told if self.client else plain
        kind, problems = plain[1]
        return [None, kind(problems)]
