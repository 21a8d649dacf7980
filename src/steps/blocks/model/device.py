"""Where tensors live, and what megatron-core needs to believe where there is no CUDA device.

megatron-core asks for CUDA devices by name in a few places, although its layers, pipeline
schedules and data parallelism work on CPU tensors. :func:`prepare_device` answers those calls
with the CPU; with a CUDA device it changes nothing.
"""

from __future__ import annotations

import functools
import os
from typing import Any

import torch
from megatron.core.pipeline_parallel import schedules
from megatron.core.tensor_parallel import random as parallel_random


@functools.cache
def prepare_device() -> torch.device:
    """The device of this process, with megatron-core ready to use it; effects only once."""
    if torch.cuda.is_available():
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(device)
        return device
    _answer_with_cpu()
    return torch.device("cpu")


def _answer_with_cpu() -> None:
    cpu = torch.device("cpu")
    torch.cuda.current_device = lambda: cpu  # type: ignore[assignment,return-value]
    torch.cuda.synchronize = lambda *_args, **_kwargs: None
    torch.Tensor.cuda = lambda self, *_args, **_kwargs: self  # type: ignore[method-assign]
    # What is recomputed gets the random numbers of the CPU again; there are no others to restore.
    parallel_random._get_cuda_rng_state = lambda **_: torch.empty(0)
    parallel_random._set_cuda_rng_state = lambda *_, **__: None
    # A TorchFunctionMode would also do, at the price of a Python call for every operation.
    schedules.torch = _TorchOnCpu()  # type: ignore[attr-defined]


class _TorchOnCpu:
    """``torch`` as the schedules see it: the counter they place on ``"cuda"`` lands on the CPU."""

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)

    @staticmethod
    def zeros(*size: Any, device: Any = None, **options: Any) -> torch.Tensor:
        return torch.zeros(*size, device="cpu" if device == "cuda" else device, **options)
