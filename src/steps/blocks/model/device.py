"""Where tensors live, and what megatron-core needs to believe where there is no CUDA device.

megatron-core asks for CUDA devices by name in a few places, although its layers, pipeline
schedules and data parallelism work on CPU tensors. :func:`prepare_device` answers those calls
with the CPU; with a CUDA device it changes nothing.
"""

from __future__ import annotations

import ctypes
import functools
import os
from typing import Any

import torch
from megatron.core.pipeline_parallel import schedules
from megatron.core.tensor_parallel import random as parallel_random

_KEPT = (  # glibc's number of an option, its environment variable, bytes
    (-1, "MALLOC_TRIM_THRESHOLD_", 1 << 30),
    (-3, "MALLOC_MMAP_THRESHOLD_", 32 << 20),  # the most that glibc allows
)


@functools.cache
def prepare_device() -> torch.device:
    """The device of this process, with megatron-core ready to use it; effects only once."""
    if torch.cuda.is_available():
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(device)
        return device
    _answer_with_cpu()
    _keep_freed_memory()
    return torch.device("cpu")


def _keep_freed_memory() -> None:
    """Have glibc keep what is freed instead of giving it back to the kernel; elsewhere no effect.

    A training step frees and takes the same megabytes again. glibc returns the end of its heap
    whenever more than some megabytes of it are free, and maps large blocks anew; every page is
    then zeroed by the kernel at its first touch: 2,000 to 3,400 pages a step of the small models
    in bench/training.py, 4 to 6% of its CPU time on a virtual machine. What environment variables
    (MALLOC_TRIM_THRESHOLD_, MALLOC_MMAP_THRESHOLD_) ask for stays.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # not glibc
        return
    for option, name, size in _KEPT:
        if name not in os.environ:
            mallopt(option, size)


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
