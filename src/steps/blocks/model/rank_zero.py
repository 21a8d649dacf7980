"""What one process does for all of a job: it talks to a service, and tells the others.

Every rank holds a :class:`Spokesman` and calls it alike. What the first rank finds, and what goes
wrong with it, comes back on every rank, so that all of them stop at the same place.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar

import torch.distributed as dist

from nemotron_style.runtime.errors import StepsError

LONGEST_WAIT = timedelta(days=1)
"""How long ranks wait for the first one, whose own patience ends much earlier."""

Found = TypeVar("Found")


class Spokesman:
    """Shares the work of the first rank; with one process it does the work and no more."""

    def __init__(self) -> None:
        # Waiting for a service must not run into the deadline that training has for its own talk.
        alone = dist.get_world_size() == 1
        self._group = None if alone else dist.new_group(backend="gloo", timeout=LONGEST_WAIT)
        self.speaks = dist.get_rank() == 0

    def share(self, work: Callable[[], Found]) -> Found:
        """What ``work`` gives on the first rank, or the error that it ends with, everywhere."""
        found: Any = None
        error: StepsError | None = None
        if self.speaks:
            try:
                found = work()
            except StepsError as told:
                error = told
        if self._group is not None:
            found, error = self._send(found, error)
        if error is not None:
            raise error
        return found

    def gather(self, mine: Any) -> list[Any]:
        """What every rank gives, in the order of ranks."""
        if self._group is None:
            return [mine]
        everywhere: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(everywhere, mine, group=self._group)
        return everywhere

    def _send(self, found: Any, error: StepsError | None) -> tuple[Any, StepsError | None]:
        plain = [found, error and (type(error), error.problems)]
        dist.broadcast_object_list(plain, src=0, group=self._group)
        if self.speaks:
            return found, error
        return plain[0], plain[1] and plain[1][0](plain[1][1])
