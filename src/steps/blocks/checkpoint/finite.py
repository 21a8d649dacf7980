"""Whether tensors hold finite numbers alone: nothing else is written to a model, or read as one."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from nemotron_style.runtime.errors import Problem

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
