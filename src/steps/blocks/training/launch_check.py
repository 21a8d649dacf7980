"""What training recipes ask about the job that they run in."""

from __future__ import annotations

from typing import Protocol

import torch

from nemotron_style.runtime.errors import Problem


class Trainer(Protocol):
    """The keys of a config's ``trainer`` that a job has to agree with."""

    @property
    def num_nodes(self) -> int: ...

    @property
    def devices(self) -> int: ...

    @property
    def precision(self) -> str | int: ...

    @property
    def half(self) -> bool: ...


def find_disagreements(trainer: Trainer, *, world_size: int) -> list[Problem]:
    """What ``trainer`` and the job disagree on: the number of processes, and the precision."""
    problems = []
    asked = trainer.num_nodes * trainer.devices
    if asked != world_size:
        problems.append(
            Problem(
                key="trainer.num_nodes x trainer.devices",
                what="the run was started with another number of processes",
                got=str(asked),
                allowed=str(world_size),
            )
        )
    if trainer.half and not torch.cuda.is_available():
        problems.append(
            Problem(
                key="trainer.precision",
                what="bfloat16 keeps float32 master weights, which needs a CUDA device",
                got=str(trainer.precision),
                fix="set trainer.precision=32",
            )
        )
    return problems


def is_due(step: int, interval: int, *, last: int) -> bool:
    """Whether something done every ``interval`` steps (0: never before the last) is done now."""
    return step == last or (interval > 0 and step % interval == 0)
