"""The optimizer of CUDA devices, whose state data ranks share, on a machine that has none."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig
from torch.overrides import TorchFunctionMode

import training_job as job
from nemotron_style.steps.blocks.model import parallel
from nemotron_style.steps.blocks.model.language_model import build_model
from nemotron_style.steps.blocks.settings.optimizer_config import OptimConfig
from nemotron_style.steps.blocks.training.optimizer import CudaAdam
from nemotron_style.steps.blocks.training.training_state import load_state, save_state

SAVED, LOADED = ("data", "tensor"), ("data", "pipeline")


class OnCpu(TorchFunctionMode):
    """Answers every request for a CUDA device with the CPU."""

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if "cuda" in str(kwargs.get("device", "")):
            kwargs["device"] = "cpu"
        return function(*args, **kwargs)


@contextmanager
def spread_state() -> Iterator[None]:
    """Within, megatron-core's distributed optimizer takes tensors of the CPU for those of CUDA."""
    plain = torch.Tensor.type

    def type_of(tensor: torch.Tensor, *args: Any, **options: Any) -> Any:
        name = plain(tensor, *args, **options)
        if not isinstance(name, str) or "cuda" in name:
            return name
        return name.replace("torch.", "torch.cuda.", 1)

    with pytest.MonkeyPatch.context() as patch, OnCpu():
        patch.setattr(torch.Tensor, "type", type_of)
        for name in ("get_data_parallel_group_gloo", "get_expert_data_parallel_group_gloo"):
            group = parallel_state.get_data_parallel_group()
            patch.setattr(parallel_state, name, lambda *_, group=group, **__: group)
        yield


def make() -> tuple[DistributedDataParallel, CudaAdam]:
    """A model whose gradients are divided over data ranks, and its optimizer."""
    model = build_model(job.CONFIG, seed=11, dtype=torch.bfloat16, ddp=False)
    settings = DistributedDataParallelConfig(
        grad_reduce_in_fp32=True, use_distributed_optimizer=True
    )
    wrapped = DistributedDataParallel(model.config, settings, model)
    model.config.no_sync_func = wrapped.no_sync
    return wrapped, CudaAdam(wrapped, OptimConfig(lr=1e-2), gradient_clip=0.0)


def step(model: DistributedDataParallel, optimizer: CudaAdam) -> float:
    job.gradient_of(model, job.batch(), size=2)
    return optimizer.step(1e-2, step=1, loss=1.0)


def save(path: Path) -> float:
    """Save the state after one update; the norm of the gradient of the next."""
    model, optimizer = make()
    step(model, optimizer)
    save_state(path, model, optimizer, extra={})
    return step(model, optimizer)


def load(path: Path) -> float:
    """The norm of the gradient after a state of one update."""
    model, optimizer = make()
    load_state(path, model, optimizer)
    return step(model, optimizer)


def main(out: Path) -> None:
    """What a rank does: states of some divisions, each read by others."""
    torch.set_num_threads(1)
    norms = {}
    for name in SAVED:
        parallel.initialize(job.DIVISIONS[name][1], seed=1)
        with spread_state():
            norms[name] = save(out / name)
    for name in LOADED:
        parallel.initialize(job.DIVISIONS[name][1], seed=1)
        with spread_state():
            norms |= {f"{saved}-{name}": load(out / saved) for saved in SAVED}
    if dist.get_rank() == 0:
        (out / "norms.json").write_text(json.dumps(norms))
    parallel.finish()
