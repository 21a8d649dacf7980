"""Several requests at once."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def map_in_threads(work: Callable[[T], R], items: Iterable[T], *, threads: int) -> list[R]:
    """What ``work`` returns for each item, in their order.

    The first error is raised as it is, and what has not begun by then never does.
    """
    from concurrent.futures import ThreadPoolExecutor  # which most commands do without

    with ThreadPoolExecutor(threads) as pool:
        try:
            return list(pool.map(work, items))
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
