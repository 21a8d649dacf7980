"""What training recipes check about the job that they run in."""

from __future__ import annotations

import torch

from nemotron_style.runtime.errors import InputError, Problem, raise_all
from nemotron_style.steps.blocks.settings.training_config import AlignerJob, Job


def find_launch_problems(trainer: Job, *, world_size: int) -> list[Problem]:
    """Where ``trainer`` and the job differ: number of processes, device, precision."""
    problems = []
    on_cuda = torch.cuda.is_available()
    if trainer.num_nodes * trainer.devices != world_size:
        problems.append(
            Problem(
                key="trainer.num_nodes x trainer.devices",
                what="the run was started with another number of processes",
                got=str(trainer.num_nodes * trainer.devices),
                allowed=str(world_size),
                fix="start it with nemotron-style, which starts as many as these keys say",
            )
        )
    if isinstance(trainer, AlignerJob):
        device = "gpu" if on_cuda else "cpu"
        if trainer.accelerator not in ("auto", device):
            what, got = f"this machine trains on {device}", trainer.accelerator
            problems.append(Problem(key="trainer.accelerator", what=what, got=got))
    if trainer.half and not on_cuda:
        problems.append(
            Problem(
                key="trainer.precision",
                what="bfloat16 keeps float32 master weights, which needs a CUDA device",
                got=str(trainer.precision),
                fix="set trainer.precision=32",
            )
        )
    return problems


def check_launch(trainer: Job, *, world_size: int) -> None:
    """Raise InputError with all of :func:`find_launch_problems`."""
    raise_all(InputError, find_launch_problems(trainer, world_size=world_size))
