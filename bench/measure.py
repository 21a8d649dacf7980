"""CPU time of variants of one piece of work, as ratios in one process."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Mapping

import torch

SMOKE = "smoke" in sys.argv[1:]
"""Whether a script is run only to see that it still runs: one round of its smallest work."""


def compare(
    title: str,
    variants: Mapping[str, Callable[[], object]],
    *,
    rounds: int,
    clock: Callable[[], float] = time.process_time,
) -> None:
    """Print each variant's CPU time, and how many times it the first variant is slower.

    ``clock`` tells the CPU time so far, of this process unless it counts others too.
    """
    rounds = 1 if SMOKE else rounds
    for run in variants.values():
        run()
    taken: dict[str, list[float]] = {name: [] for name in variants}
    for turn in range(rounds):
        for name in sorted(variants, reverse=bool(turn % 2)):
            begin = clock()
            variants[name]()
            taken[name].append(clock() - begin)
    print(f"{title} ({rounds} rounds, {torch.get_num_threads()} thread)")
    base = taken[next(iter(variants))]
    for name, times in taken.items():
        ratios = [one / other for one, other in zip(times, base, strict=True)]
        print(
            f"  {name:44s} {1e3 * statistics.median(times):9.2f} ms"
            f"   x{statistics.median(ratios):.2f} [{min(ratios):.2f} .. {max(ratios):.2f}]",
            flush=True,
        )
