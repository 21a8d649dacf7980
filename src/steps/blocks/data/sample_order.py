"""Which sample is consumed when: a pure function of the seed and the step.

There is no iterator to save. The state of the order *is* the step number, so a run that resumes
at step k reads exactly the samples that a run without a break would have read from step k on.
The permutation comes from hashes, not from a random generator, and is the same on every machine,
Python version and world size.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from nemotron_style.runtime.errors import InputError, Problem


@dataclass(frozen=True)
class SampleOrder:
    """Global batches of ``batch`` indices below ``size``, reshuffled every epoch.

    Without ``shuffle`` every epoch goes through them as they are.

    With ``sample`` false the samples that do not fill a last batch are dropped from their epoch
    (another part in each), as NeMo-Aligner's loader does with ``drop_last``. With ``sample`` true
    (``model.data.sample``) the epochs are one endless stream, and nothing is dropped.

    Raises:
        InputError: ``sample`` is false and the data set does not fill one batch.
    """

    size: int
    seed: int
    batch_size: int
    sample: bool = False
    shuffle: bool = True

    def __post_init__(self) -> None:
        assert self.size > 0
        assert self.batch_size > 0
        if not self.sample and self.size < self.batch_size:
            raise InputError(
                Problem(
                    what="the data set does not fill one global batch",
                    got=f"{self.size} samples for a global_batch_size of {self.batch_size}",
                    fix="lower global_batch_size, or set model.data.sample=true to repeat samples",
                )
            )

    def batch(self, step: int) -> tuple[int, ...]:
        """Sample indices of step ``step`` (from 0), in the order they are consumed."""
        if not self.sample:
            epoch, number = divmod(step, self.steps_per_epoch)
            start = number * self.batch_size
            return tuple(self._of_epoch(epoch)[start : start + self.batch_size])
        first = step * self.batch_size
        stream = (divmod(index, self.size) for index in range(first, first + self.batch_size))
        return tuple(self._of_epoch(epoch)[offset] for epoch, offset in stream)

    def _of_epoch(self, epoch: int) -> Sequence[int]:
        """The indices of an epoch, in the order they are consumed."""
        return permutation(self.size, self.seed, epoch) if self.shuffle else range(self.size)

    @property
    def steps_per_epoch(self) -> int:
        """Whole batches in one pass over the data; at least 1."""
        return max(1, self.size // self.batch_size)

    def steps(self, *, max_steps: int, max_epochs: int | None) -> int:
        """How many steps a run takes: the smaller limit; -1 and None mean no limit.

        With ``sample`` only ``max_steps`` counts, since repeating the data is what was asked for.

        Raises:
            InputError: neither limit is given.
        """
        limits = [max_steps] if max_steps >= 0 else []
        if max_epochs is not None and max_epochs >= 0 and not (self.sample and limits):
            limits.append(max_epochs * self.steps_per_epoch)
        if not limits:
            raise InputError(
                Problem(what="no end is given", fix="set max_steps or max_epochs to 1 or more")
            )
        return min(limits)

    def epoch(self, step: int) -> int:
        """The epoch (from 0) that the first sample of ``step`` belongs to."""
        if self.sample:
            return step * self.batch_size // self.size
        return step // self.steps_per_epoch


@lru_cache(maxsize=4)
def permutation(size: int, seed: int, epoch: int) -> tuple[int, ...]:
    """The numbers below ``size`` in an order fixed by ``seed`` and ``epoch``."""
    prefix = f"{seed}/{epoch}/"

    def rank(index: int) -> bytes:
        return hashlib.blake2b(f"{prefix}{index}".encode(), digest_size=16).digest()

    return tuple(sorted(range(size), key=rank))
