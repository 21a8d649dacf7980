"""The language model on megatron-core, and the processes that share it."""

import importlib
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import torch


class _LateModule(ModuleType):
    """Stands in for a module that is imported when one of its functions is called."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        if name[0].isupper():
            return type(name, (Exception,), {})  # to be caught; only the module itself raises it

        def call(*arguments: Any, **options: Any) -> Any:
            return getattr(importlib.import_module(self.__name__), name)(*arguments, **options)

        return call


@contextmanager
def _with_modules(modules: Mapping[str, ModuleType | None]) -> Iterator[None]:
    """Within it imports find ``modules``; one that is None is as if it were not installed."""
    ours = {name: module for name, module in modules.items() if name not in sys.modules}
    sys.modules.update(ours)  # type: ignore[arg-type]
    try:
        yield
    finally:
        for name in ours:
            del sys.modules[name]


@contextmanager
def _without_compiler() -> Iterator[None]:
    """Within it ``torch.compile`` does nothing.

    megatron-core decorates its fused functions with it, and the first decoration loads torch's
    compiler: more than a second of every start, for functions that only run on CUDA devices.
    Sizes that are formulas are the compiler's too, with sympy: half a second.
    """
    compiler, sizes = torch.compile, "torch.fx.experimental.symbolic_shapes"
    torch.compile = lambda function=None, **_: function or (lambda other: other)
    try:
        with _with_modules({sizes: _LateModule(sizes)}):
            yield
    finally:
        torch.compile = compiler


if "megatron.core" not in sys.modules:
    # Its inference engine would log to Weights & Biases, TensorBoard would write to S3: half a
    # second of every start, for what happens in no run.
    with _with_modules({"wandb": None, "boto3": None}):
        if torch.cuda.is_available():
            import megatron.core
        else:
            with _without_compiler():
                import megatron.core  # noqa: F401
