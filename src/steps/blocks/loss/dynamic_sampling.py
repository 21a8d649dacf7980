"""A batch of samples that all have something to say (DAPO, arXiv 2503.14476, section 3.2).

Source: NeMo-RL's dynamic sampling. It keeps *samples* whose baseline has a deviation, not whole
groups: with leave-one-out, the loser of a group (0, 1, 1) sees none and is dropped.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

Sample = TypeVar("Sample")


@dataclass(frozen=True)
class Filled(Generic[Sample]):
    """The samples kept so far, oldest first; ``complete`` when they fill a batch.

    ``discarded`` counts good samples beyond the batch's size, ``cached`` those kept before it
    was cut.
    """

    samples: Sequence[Sample]
    complete: bool
    discarded: int
    cached: int


def fill_batch(
    cache: Sequence[Sample],
    samples: Sequence[Sample],
    stds: Sequence[float],
    *,
    size: int,
    batch: int,
    most_batches: int,
) -> Filled[Sample]:
    """Add the samples with a deviation to the cache, and cut it to ``size`` once it is full.

    ``batch`` is the number of batches generated for this step so far, this one included. Raises
    ValueError when it is not full after more than ``most_batches``.
    """
    kept = [*cache, *(one for one, std in zip(samples, stds, strict=True) if std != 0)]
    if len(kept) >= size:
        return Filled(kept[:size], True, len(kept) - size, len(kept))
    if batch > most_batches:
        raise ValueError(
            f"{batch} batches gave {len(kept)} samples with a deviation and {size} are "
            "needed: raise dynamic_sampling_max_gen_batches, or see whether the prompts are too "
            "easy or too hard"
        )
    return Filled(kept, False, 0, len(kept))
