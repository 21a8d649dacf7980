"""The whole state of a training run, so that it goes on as if it had never stopped.

::

    state/              torch_dist: what is trained (weights or adapters) and its moments
    random-<rank>.json  Python's, torch's and CUDA's random number states of each rank
    extra.json          what the recipe keeps (step, position in the data ...)

A state is read by any number of processes, however they divide the model. What a recipe samples
comes from streams that are named by the sample, and its data are ordered by the sample: neither
knows a rank.
"""

from __future__ import annotations

import base64
import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from nemotron_style.runtime.errors import InputError, Problem
from nemotron_style.runtime.step.context import StepContext
from nemotron_style.steps.blocks.checkpoint import torch_dist
from nemotron_style.steps.blocks.model.language_model import unwrap
from nemotron_style.steps.blocks.model.lora import has_adapters
from nemotron_style.steps.blocks.model.rank_zero import is_rank_zero
from nemotron_style.steps.blocks.model.sharded_tensor import sharded_weights
from nemotron_style.steps.blocks.settings.peft_config import AdapterBase
from nemotron_style.steps.blocks.training.optimizer import Optimizer

STATE, EXTRA = "state", "extra.json"


@dataclass(frozen=True)
class TrainingState:
    """The model and the optimizer of a run, saved to its checkpoints and restored from them.

    Of a model with adapters the state holds these alone; it goes on upon their ``base`` and upon no
    other model.
    """

    ctx: StepContext
    model: nn.Module
    optimizer: Optimizer
    base: AdapterBase | None = None

    def save(self, step: int, extra: dict[str, Any], *, keep: int = 2) -> None:
        """Commit the state after ``step`` updates; the ``keep`` newest stay. Every rank calls it.

        ``extra`` is what the recipe has to remember, as JSON.
        """
        path = self.ctx.checkpoints.stage(step)
        save_state(path, self.model, self.optimizer, extra=extra, base=self.digest)
        self.ctx.checkpoints.commit(step, keep=keep)
        if skipped := self.optimizer.guard.skipped:
            self.ctx.summarise(skipped_updates=skipped)
        dist.barrier()  # no rank goes on before the state is there to continue from

    @property
    def digest(self) -> str:
        """The weights digest of the base; empty where all weights are trained."""
        return self.base.weights_digest if self.base else ""

    def restore(self) -> tuple[int, dict[str, Any]]:
        """Take over the newest checkpoint: how many updates were made, and ``extra``.

        0 and nothing for a new run. Metrics of later steps are removed, since these steps are
        done again.
        """
        newest = self.ctx.checkpoints.newest()
        if newest is None:
            self.ctx.metrics.rewind(-1)
            return 0, {}
        extra = load_state(newest.path, self.model, self.optimizer, base=self.digest)
        self.ctx.metrics.rewind(newest.step)
        self.ctx.say(f"continuing after step {newest.step}")
        return newest.step, extra


def save_state(
    path: Path, model: nn.Module, optimizer: Optimizer, *, extra: dict[str, Any], base: str = ""
) -> None:
    """Write weights, moments, random states and ``extra`` (JSON) into ``path``; all ranks call.

    Of a model with adapters it writes these for weights, and the digest ``base`` of the rest.
    """
    if is_rank_zero():
        path.mkdir(parents=True, exist_ok=True)
        kept = {"world_size": dist.get_world_size(), "extra": extra}
        kept["guard"] = optimizer.guard.stored()
        if base:
            kept["base"] = base
        (path / EXTRA).write_text(json.dumps(kept))
    torch_dist.write(_sharded(model, optimizer, loading=False), path / STATE)
    rank_file = path / f"random-{dist.get_rank()}.json"
    rank_file.write_text(json.dumps(_random_state()))
    dist.barrier()


def load_state(
    path: Path, model: nn.Module, optimizer: Optimizer, *, base: str = ""
) -> dict[str, Any]:
    """Restore weights, moments and random states; ``extra`` comes back. Every rank calls it.

    The number of processes and the division may be others than those that saved, the ``base`` of
    adapters may not: InputError.
    """
    kept = json.loads((path / EXTRA).read_text())
    if kept.get("base", "") != base:
        raise InputError(
            Problem(
                what="the run trains adapters of another model",
                where=str(path),
                got=base or "all weights are trained",
                allowed=kept.get("base") or "no adapters: all weights were trained",
                fix="start it with the model that it began with, or begin a new run",
            )
        )
    loaded = torch_dist.read(_sharded(model, optimizer, loading=True), path / STATE)
    unwrap(model).load_state_dict(loaded["model"], strict=False)
    optimizer.load(loaded["optimizer"])
    optimizer.guard.load(kept.get("guard", {}))  # states of earlier versions have none
    # As many ranks go on with their own numbers each. Others begin alike, as all do in a new run:
    # no rank's numbers are theirs.
    own = dist.get_rank() if kept["world_size"] == dist.get_world_size() else 0
    _restore_random(json.loads((path / f"random-{own}.json").read_text()))
    return kept["extra"]


def _sharded(model: nn.Module, optimizer: Optimizer, *, loading: bool) -> dict[str, Any]:
    inner = unwrap(model)
    adapters = has_adapters(inner)
    weights = sharded_weights(inner, adapters=adapters)
    # the optimizer's description is taken from that of the weights, so it is built first
    moments = optimizer.sharded_state(sharded_weights(inner, adapters=adapters), loading=loading)
    return {"model": weights, "optimizer": moments}


def _random_state() -> dict[str, Any]:
    state: dict[str, Any] = {
        "python": random.getstate(),
        "torch": _text(torch.get_rng_state()),
    }
    if torch.cuda.is_available():
        from megatron.core.tensor_parallel.random import get_cuda_rng_tracker

        state["cuda"] = _text(torch.cuda.get_rng_state())
        state["tracker"] = {
            name: _text(value) for name, value in get_cuda_rng_tracker().get_states().items()
        }
    return state


def _restore_random(state: dict[str, Any]) -> None:
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    torch.set_rng_state(_bytes(state["torch"]))
    if "cuda" in state and torch.cuda.is_available():
        from megatron.core.tensor_parallel.random import get_cuda_rng_tracker

        torch.cuda.set_rng_state(_bytes(state["cuda"]))
        tracker = {name: _bytes(value) for name, value in state["tracker"].items()}
        get_cuda_rng_tracker().set_states(tracker)


def _text(state: Tensor) -> str:
    return base64.b64encode(state.numpy().tobytes()).decode()


def _bytes(text: str) -> Tensor:
    return torch.frombuffer(bytearray(base64.b64decode(text)), dtype=torch.uint8)
