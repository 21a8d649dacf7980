"""The language model on megatron-core, and the processes that share it."""

import sys

import torch


def _import_megatron_core_without_compiler() -> None:
    """Import megatron-core with a ``torch.compile`` that does nothing.

    megatron-core decorates its fused functions with it, and the first decoration loads torch's
    compiler: more than a second of every start, for functions that only run on CUDA devices.
    """
    compiler = torch.compile
    torch.compile = lambda function=None, **_: function or (lambda other: other)
    try:
        import megatron.core  # noqa: F401
    finally:
        torch.compile = compiler


if "megatron.core" not in sys.modules and not torch.cuda.is_available():
    _import_megatron_core_without_compiler()
