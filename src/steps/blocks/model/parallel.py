"""The processes of one training job and how they divide the model and the data.

World size = tensor x pipeline x data. Tensor ranks hold slices of every matrix, pipeline ranks
hold runs of layers, data ranks hold copies of the model and see different rows.
"""

from __future__ import annotations

import os
import random
import socket
import warnings
from dataclasses import dataclass

import psutil
import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.tensor_parallel.random import (
    initialize_rng_tracker,
    model_parallel_cuda_manual_seed,
)

from nemotron_style.runtime.errors import InputError, Problem
from nemotron_style.steps.blocks.model.device import prepare_device
from nemotron_style.steps.blocks.settings.parallel_config import DividedModel

LOOPBACK = "127.0.0.1"


@dataclass(frozen=True)
class Parallel:
    """How many ways one copy of the model is divided."""

    tensor: int = 1
    pipeline: int = 1

    @staticmethod
    def of(config: DividedModel) -> Parallel:
        """The division that a config asks for."""
        return Parallel(config.tensor_model_parallel_size, config.pipeline_model_parallel_size)

    @property
    def model(self) -> int:
        """Processes that hold one copy of the model together."""
        return self.tensor * self.pipeline


def initialize(parallel: Parallel | None = None, *, seed: int = 1234) -> None:
    """Join the job that ``torchrun`` started, or be a job of one process; then seed.

    A second call with the same division only seeds again; with another one it divides anew.
    Raises InputError when the processes cannot be divided so.
    """
    parallel = parallel or Parallel()
    prepare_device()
    if not dist.is_initialized():
        _join()
    _divide(parallel)
    seed_everything(seed)


def seed_everything(seed: int) -> None:
    """Seed Python's, torch's and megatron-core's random numbers, alike on every rank."""
    random.seed(seed)
    torch.manual_seed(seed)
    on_cpu = not torch.cuda.is_available()
    initialize_rng_tracker(inference_rng_tracker=on_cpu, force_reset=True)
    if not on_cpu:
        model_parallel_cuda_manual_seed(seed)


def finish() -> None:
    """Leave the job; no-op when none was joined."""
    if parallel_state.model_parallel_is_initialized():
        parallel_state.destroy_model_parallel()
    if dist.is_initialized():
        dist.destroy_process_group()


def _join() -> None:
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    # A barrier takes the process's own device, which prepare_device has chosen.
    warnings.filterwarnings("ignore", message=r"barrier\(\): using the device under current")
    started = "RANK" in os.environ and "MASTER_ADDR" in os.environ
    if not started or os.environ.get("LOCAL_WORLD_SIZE") == os.environ.get("WORLD_SIZE"):
        _stay_on_this_machine()
    if started:
        dist.init_process_group(backend)
    else:
        # One process needs no rendezvous, so no port that another job could hold.
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)


def _stay_on_this_machine() -> None:
    """Have gloo and nccl listen on loopback alone, whatever interface others were told to take.

    Both would listen on the machine's own address, open to whoever reaches it: one port for each
    of megatron-core's groups, even in a job of one process.
    """
    loopback = next(
        name
        for name, addresses in psutil.net_if_addrs().items()
        if any(each.family == socket.AF_INET and each.address == LOOPBACK for each in addresses)
    )
    os.environ |= {"GLOO_SOCKET_IFNAME": loopback, "NCCL_SOCKET_IFNAME": loopback}


def _divide(parallel: Parallel) -> None:
    world = dist.get_world_size()
    if parallel.tensor < 1 or parallel.pipeline < 1 or world % parallel.model:
        raise InputError(
            Problem(
                what="the processes cannot be divided so",
                key="tensor_model_parallel_size x pipeline_model_parallel_size",
                got=f"{parallel.tensor} x {parallel.pipeline} with {world} process(es)",
                allowed=f"positive sizes whose product divides {world}",
            )
        )
    if parallel_state.model_parallel_is_initialized():
        if current_parallel() == parallel:
            return
        parallel_state.destroy_model_parallel()
    parallel_state.initialize_model_parallel(
        tensor_model_parallel_size=parallel.tensor,
        pipeline_model_parallel_size=parallel.pipeline,
        # Groups on the CPU beside those on CUDA devices; without such devices all are on the CPU.
        create_gloo_process_groups=torch.cuda.is_available(),
    )


def current_parallel() -> Parallel:
    """The division in force."""
    return Parallel(
        tensor=parallel_state.get_tensor_model_parallel_world_size(),
        pipeline=parallel_state.get_pipeline_model_parallel_world_size(),
    )


def data_rank() -> int:
    """Which copy of the model this process belongs to: the share of rows it reads."""
    return parallel_state.get_data_parallel_rank()


def data_world() -> int:
    """Number of copies of the model."""
    return parallel_state.get_data_parallel_world_size()


def is_last_stage() -> bool:
    """Whether this process has logits, and so losses."""
    return parallel_state.is_pipeline_last_stage()


def speaks_for_copy() -> bool:
    """Whether this process, of those that hold a copy of the model together, is the first with
    losses: one of each copy is."""
    return is_last_stage() and parallel_state.get_tensor_model_parallel_rank() == 0


def sum_over_data(values: torch.Tensor) -> torch.Tensor:
    """``values`` summed over the copies of the model; any shape, a new tensor."""
    total = values.to(prepare_device(), copy=True)
    if data_world() > 1:
        dist.all_reduce(total, group=parallel_state.get_data_parallel_group())
    return total.to(values.device)


def any_rank(flag: bool) -> bool:
    """Whether ``flag`` is set on any rank of the run; the same answer on all of them."""
    votes = torch.tensor(int(flag), device=prepare_device())
    dist.all_reduce(votes)
    return bool(votes.item())


def from_last_stage(values: torch.Tensor) -> torch.Tensor:
    """``values`` of the last pipeline stage on every stage; others give a tensor of that shape."""
    if current_parallel().pipeline == 1:
        return values
    shared = values.to(prepare_device())
    source = parallel_state.get_pipeline_model_parallel_last_rank()
    dist.broadcast(shared, src=source, group=parallel_state.get_pipeline_model_parallel_group())
    return shared.to(values.device)
