"""A card that is not there: tensors that say they lie on another device and compute on the CPU.

torch's FakeTensor checks devices too, but holds no numbers, so no recipe could run on it. Here the
numbers are real: whole recipes train on the card, and an operation on tensors of the card and of
the CPU raises, as it does on CUDA. The card calls itself ``meta``, since autograd refuses a
device that torch was built without.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from megatron.core import parallel_state
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from nemotron_style.steps.blocks.model.prefix_packing import PackedBatch
from nemotron_style.steps.blocks.training import microbatch, optimizer

CARD = torch.device("meta")
aten = torch.ops.aten
ACROSS = {aten._to_copy.default, aten.copy_.default, aten.set_.source_Tensor}
"""Operations that take tensors of two devices."""
INDEXED = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default}
"""Operations whose indices, the second argument, may lie on the CPU."""


SIZED_BY_NUMBERS = {aten.nonzero.default, aten.masked_select.default, aten.unique_dim.default}
"""Operations whose result is as large as its numbers say."""
WAITS: list[str] = []
"""What the CPU had to wait for the card for: see :func:`waits`."""


class MixedDevicesError(RuntimeError):
    """One operation was given tensors of the card and of the CPU."""


class OnCard(torch.Tensor):
    """A tensor of the card; ``inner`` has its numbers."""

    @staticmethod
    def __new__(cls, inner: torch.Tensor) -> OnCard:
        tensor = torch.Tensor._make_wrapper_subclass(
            cls,
            inner.size(),
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=CARD,
        )
        tensor.inner = inner
        return tensor

    def __repr__(self) -> str:
        return f"OnCard({self.inner!r})"

    @property
    def data(self) -> torch.Tensor:
        return self.detach()

    @data.setter
    def data(self, other: OnCard) -> None:
        torch.Tensor.data.__set__(self, other)
        self.inner = other.inner

    def __setitem__(self, index: Any, value: Any) -> None:
        # torch itself would make tensors without numbers of lists
        parts = index if isinstance(index, tuple) else (index,)
        parts = tuple(torch.tensor(one) if isinstance(one, list) else one for one in parts)
        super().__setitem__(parts, value)

    def tolist(self) -> Any:
        return self.inner.tolist()

    def type(self, *arguments: Any) -> Any:  # megatron-core asks for it before it clips
        return super().type(*arguments) if arguments else "torch.cuda.FloatTensor"

    @classmethod
    def __torch_dispatch__(cls, operation, types, args=(), kwargs=None):
        return execute(operation, args, kwargs or {})


def execute(operation: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """The result of an operation, on the device where it belongs."""
    across = operation in ACROSS or "c10d" in str(operation)
    looked_at = (args[:1], args[2:]) if operation in INDEXED else (args, kwargs)
    tensors = [leaf for leaf in tree_leaves(looked_at) if isinstance(leaf, torch.Tensor)]
    on_card = any(isinstance(tensor, OnCard) for tensor in tensors)
    empty = [one for one in tree_leaves((args, kwargs)) if isinstance(one, torch.Tensor)]
    empty = [one for one in empty if one.is_meta and not isinstance(one, OnCard)]
    assert not empty, f"{operation}: a tensor without numbers"
    # a number on the CPU, such as a constant, may be used anywhere
    on_cpu = any(not isinstance(tensor, OnCard) and tensor.dim() for tensor in tensors)
    if on_card and on_cpu and not across:
        raise MixedDevicesError(f"{operation}: tensors of the card and of the CPU")
    if operation is aten.copy_.default:
        on_card = isinstance(args[0], OnCard)
    if kwargs.get("device") is not None:
        on_card = torch.device(kwargs["device"]) == CARD
        kwargs = {**kwargs, "device": torch.device("cpu")}
    note_wait(operation, args, on_card_before=any(map(_on_card, tensors)), on_card_after=on_card)
    outer = {id(leaf.inner): leaf for leaf in tree_leaves((args, kwargs)) if _on_card(leaf)}
    result = operation(*tree_map(_inner, args), **tree_map(_inner, kwargs))

    def wrap(value: Any) -> Any:
        if id(value) in outer:  # an operation in place returns what it was given
            return outer[id(value)]
        return OnCard(value) if on_card and isinstance(value, torch.Tensor) else value

    return tree_map(wrap, result)


def note_wait(operation: Any, args: Any, *, on_card_before: bool, on_card_after: bool) -> None:
    """Remember an operation whose result the CPU needs before it can go on."""
    leaves = operation in ACROSS and _on_card(args[-1] if len(args) == 2 else args[0])
    mask = operation in INDEXED and any(
        _on_card(index) and index.dtype is torch.bool for index in args[1] if index is not None
    )
    number = operation is aten._local_scalar_dense.default or operation in SIZED_BY_NUMBERS
    if on_card_before and (number or mask or (leaves and not on_card_after)):
        WAITS.append(str(operation))


def waits(work: Callable[[], object]) -> list[str]:
    """What the CPU waits for the card for in ``work``: numbers that are read, masks as indices."""
    WAITS.clear()
    work()
    return list(WAITS)


def _on_card(value: Any) -> bool:
    return isinstance(value, OnCard)


def _inner(value: Any) -> Any:
    return value.inner if isinstance(value, OnCard) else value


class Dispatch(TorchDispatchMode):
    """Puts new tensors on the card where they are asked for there."""

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        return execute(operation, args, kwargs or {})


class Names(TorchFunctionMode):
    """Calls the card by the name that torch knows, and moves literals to it."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if "cuda" in str(kwargs.get("device", "")):
            kwargs["device"] = CARD
        if function in (torch.tensor, torch.as_tensor):
            device = kwargs.pop("device", None)
            numbers = tree_map(lambda one: one.item() if _on_card(one) else one, args)
            return function(*numbers, **kwargs).to(device or "cpu")
        return function(*args, **kwargs)


def move_module(module: nn.Module, *_: Any, device: Any = CARD, dtype: Any = None) -> nn.Module:
    """``Module.to``, which cannot put tensors of another class in the place of its own."""
    for part in module.modules():
        for name, weight in part._parameters.items():
            if weight is not None:
                moved = nn.Parameter(weight.detach().to(device=device, dtype=dtype))
                moved.requires_grad_(weight.requires_grad)
                moved.__dict__.update({**weight.__dict__, **moved.__dict__})
                part._parameters[name] = moved
    return module


def exchange(sent: Sequence[dist.P2POp]) -> list[Any]:
    """``batch_isend_irecv``, which would look for a backend of the card."""
    works = [one.op(_inner(one.tensor), one.peer, one.group) for one in sent]
    return [work for work in works if work]


@contextmanager
def card() -> Iterator[None]:
    """Within it models are on the card, and what trains them is what trains them on CUDA."""
    with pytest.MonkeyPatch.context() as patch:
        for name, module in list(sys.modules.items()):
            if name.startswith("nemotron_style.") and hasattr(module, "prepare_device"):
                patch.setattr(module, "prepare_device", lambda: CARD)
        patch.setattr(nn.Module, "to", move_module)
        # A tensor of the card has no views in inference mode; for gradients both are the same.
        for name in ("__enter__", "__exit__"):
            patch.setattr(torch.inference_mode, name, getattr(torch.no_grad, name))
        patch.setattr(torch.cuda, "current_device", lambda: CARD)
        patch.setattr(optimizer, "CpuAdamW", optimizer.CudaAdam)
        patch.setattr(dist, "batch_isend_irecv", exchange)
        for name in ("get_data_parallel_group_gloo", "get_expert_data_parallel_group_gloo"):
            patch.setattr(parallel_state, name, lambda *_, **__: None)
        with Names(), Dispatch():
            yield


@contextmanager
def mixing(where: str) -> Iterator[None]:
    """A mistake: one tensor is left on the CPU, in a batch or in what is made of log-probs."""
    plain_to, plain_run = PackedBatch.to, microbatch._run

    def to(batch, device):
        return replace(plain_to(batch, device), predictors_T=batch.predictors_T)

    def run(model, batches, finish, **options):
        def mix(facts, outputs):
            return finish(facts, outputs * torch.ones(outputs.shape))

        return plain_run(model, batches, mix, **options)

    with pytest.MonkeyPatch.context() as patch:
        if where == "batch":
            patch.setattr(PackedBatch, "to", to)
        else:
            patch.setattr(microbatch, "_run", run)
        yield


def fail_where_devices_mix(
    work: Callable[[], object], places: Sequence[str] = ("batch", "loss")
) -> None:
    """``work`` ends on the card at each of the two mistakes."""
    for where in places:
        with card(), mixing(where), pytest.raises(MixedDevicesError):
            work()
