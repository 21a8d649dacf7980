"""Whether tensors hold finite numbers alone: nothing else is written to a model, or read as one."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from megatron.core.dist_checkpointing import ShardedTensor
from torch import Tensor

from nemotron_style.runtime.errors import InputError, Problem, StepFailed
from nemotron_style.steps.blocks.model.rank_zero import gather

SHOWN = 5


def find_nonfinite(tensors: Iterable[tuple[str, Tensor]]) -> list[str]:
    """The names of tensors that hold an infinity or a NaN."""
    return [name for name, tensor in tensors if not is_finite(tensor)]


def is_finite(tensor: Tensor) -> bool:
    """Whether every number of a tensor is finite; true for an empty one and for integers."""
    if not tensor.is_floating_point() or tensor.numel() == 0:
        return True
    # One pass without a mask in memory; a NaN anywhere makes both ends NaN.
    return all(math.isfinite(end.item()) for end in torch.aminmax(tensor.detach()))


def require_finite_parts(state: Mapping[str, Any], *, where: str, reading: bool) -> None:
    """Check every rank's tensors of a (nested) state; every rank calls it.

    Raises on all ranks where any has one that is not finite: InputError for what was read,
    StepFailed for what is about to be written.
    """
    own = find_nonfinite(_tensors(state))
    by_rank = gather(own)
    if not any(by_rank):
        return
    names = sorted({name for names in by_rank for name in names})
    ranks = ", ".join(str(rank) for rank, names in enumerate(by_rank) if names)
    problem = describe_nonfinite(names, where=where)
    if len(by_rank) > 1:
        problem = replace(problem, got=f"{problem.got}, on rank {ranks}")
    raise (InputError if reading else StepFailed)(problem)


def describe_nonfinite(names: list[str], *, where: str) -> Problem:
    """What is wrong with a checkpoint at ``where`` whose tensors ``names`` are not finite."""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return Problem(
        where=where,
        key=", ".join(names[:SHOWN]) + more,
        what="tensors hold numbers that are not finite",
        got=f"{len(names)} of them",
        allowed="finite numbers, which no infinity or NaN is",
        fix="go back to a state from before the numbers ran away; where a smaller type made them "
        "infinite, keep a larger one",
    )


def _tensors(state: Any, name: str = "") -> Iterator[tuple[str, Tensor]]:
    if isinstance(state, ShardedTensor):
        yield state.key, state.data
    elif isinstance(state, Tensor):
        yield name, state
    elif isinstance(state, Mapping):
        for key, value in state.items():
            yield from _tensors(value, str(key))
    elif isinstance(state, list | tuple):
        for value in state:
            yield from _tensors(value, name)
