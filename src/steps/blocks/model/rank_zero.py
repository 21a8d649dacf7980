"""Work that rank zero does for the whole job, such as talking to a service.

Every rank holds a :class:`RankZero` and calls it alike. The result of the work, or the error it
ended with, comes back on every rank, so that all of them go on, or stop, at the same line.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar

import torch.distributed as dist

from nemotron_style.runtime.errors import StepsError

LONGEST_WAIT = timedelta(days=1)
"""How long the other ranks wait for rank zero, whose own deadlines end much earlier."""

Result = TypeVar("Result")


def is_rank_zero() -> bool:
    """Whether this process alone writes what all ranks agree on."""
    return not dist.is_initialized() or dist.get_rank() == 0


def gather(value: Any, *, group: dist.ProcessGroup | None = None) -> list[Any]:
    """The ``value`` of every rank, in the order of ranks, on every rank."""
    values: list[Any] = [value] * dist.get_world_size()
    if len(values) > 1:
        dist.all_gather_object(values, value, group=group)
    return values


def share_from_rank_zero(work: Callable[[], Result]) -> Result:
    """The result of ``work`` on rank zero, on every rank, once all ranks have come here.

    For work that takes less than the deadline of a collective; see :class:`RankZero` for longer.
    """
    dist.barrier()
    results: list[Any] = [work() if is_rank_zero() else None]
    if dist.get_world_size() > 1:
        dist.broadcast_object_list(results, src=0)
    result: Result = results[0]
    return result


class RankZero:
    """Shares what rank zero computes; a job of one process only does the work."""

    def __init__(self) -> None:
        # A group of its own: waiting for a service may take longer than the deadline that
        # training sets for its collectives.
        alone = dist.get_world_size() == 1
        self._group = None if alone else dist.new_group(backend="gloo", timeout=LONGEST_WAIT)

    def run(self, work: Callable[[], Result]) -> Result:
        """The result of ``work`` on rank zero, or the StepsError it ended with, on every rank."""
        result: Any = None
        error: StepsError | None = None
        if is_rank_zero():
            try:
                result = work()
            except StepsError as raised:
                error = raised
        if self._group is not None:
            # An error travels as its class and problems: it may hold what cannot be pickled.
            message = [result, error and (type(error), error.problems)]
            dist.broadcast_object_list(message, src=0, group=self._group)
            if not is_rank_zero():
                result, error = message[0], message[1] and message[1][0](message[1][1])
        if error is not None:
            raise error
        return result

    def gather(self, value: Any) -> list[Any]:
        """The ``value`` of every rank, in the order of ranks, on every rank."""
        return gather(value, group=self._group)
