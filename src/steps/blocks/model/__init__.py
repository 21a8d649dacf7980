"""The language model on megatron-core, and the processes that share it."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def _without_compiler() -> Iterator[None]:
    """Within it ``torch.compile`` does nothing.

    megatron-core decorates its fused functions with it, and the first decoration loads torch's
    compiler: more than a second of every start, for functions that only run on CUDA devices.
    """
    compiler = torch.compile
    torch.compile = lambda function=None, **_: function or (lambda other: other)
    try:
        yield
    finally:
        torch.compile = compiler


@contextmanager
def _without_modules(*names: str) -> Iterator[None]:
    """Within it an import of ``names`` fails as if they were not installed."""
    hidden = [name for name in names if name not in sys.modules]
    sys.modules.update(dict.fromkeys(hidden))  # type: ignore[arg-type]
    try:
        yield
    finally:
        for name in hidden:
            del sys.modules[name]


if "megatron.core" not in sys.modules:
    # Its inference engine would log to Weights & Biases, TensorBoard would write to S3: half a
    # second of every start, for what happens in no run.
    with _without_modules("wandb", "boto3"):
        if torch.cuda.is_available():
            import megatron.core
        else:
            with _without_compiler():
                import megatron.core  # noqa: F401
