"""The learning rate of each update, as NeMo and as megatron-core count it."""

from __future__ import annotations

import math
from typing import Literal, Protocol

from nemotron_style.runtime.step.context import StepContext
from nemotron_style.steps.blocks.settings.optimizer_config import OptimConfig


def cosine_annealing(config: OptimConfig, update: int, *, updates: int) -> float:
    """Learning rate of the update number ``update`` (from 0) of ``updates``.

    ``lr * (u + 1) / (warmup + 1)`` for u <= warmup, then ``min_lr + (lr - min_lr) * (1 +
    cos(pi * (u - warmup) / decay)) / 2`` with ``decay = updates - constant - warmup``, then
    ``min_lr``. Where warm-up and constant steps leave no update to decay in, ``lr`` is held: NeMo
    falls to ``min_lr`` at once. Source: NeMo, ``CosineAnnealing`` in
    ``nemo/core/optim/lr_scheduler.py``.
    """
    sched = config.sched
    if sched.warmup_steps and update <= sched.warmup_steps:
        return config.lr * (update + 1) / (sched.warmup_steps + 1)
    decay = updates - sched.constant_steps - sched.warmup_steps
    if decay <= 0 and update < updates:
        return config.lr
    passed = update - sched.warmup_steps
    if passed >= decay:
        return sched.min_lr
    return sched.min_lr + (config.lr - sched.min_lr) * (1 + math.cos(math.pi * passed / decay)) / 2


def warn_if_held(ctx: StepContext, config: OptimConfig, *, updates: int) -> None:
    """Say that a run of ``updates`` ends before its learning rate decays."""
    sched = config.sched
    if sched.constant_steps and sched.warmup_steps + sched.constant_steps >= updates:
        ctx.say(
            f"warning: sched.warmup_steps {sched.warmup_steps} and sched.constant_steps "
            f"{sched.constant_steps} leave none of the {updates} updates to decay in: the learning "
            f"rate stays at {config.lr:g} and never falls to sched.min_lr {sched.min_lr:g}. Set "
            "sched.constant_steps below the number of updates to have it decay"
        )


class Rates(Protocol):
    """The rates of megatron-core's ``OptimizerConfig``."""

    lr: float
    min_lr: float


class Decay(Protocol):
    """The settings of megatron-core's ``OptimizerParamScheduler``, counted in updates."""

    lr_warmup_iters: int
    lr_warmup_init: float
    lr_decay_style: Literal["constant", "linear", "cosine"]
    lr_decay_iters: int | None


def megatron_decay(rates: Rates, decay: Decay, update: int, *, updates: int) -> float:
    """Learning rate of the update number ``update`` (from 0) of ``updates``.

    ``init + (lr - init) * u / warmup`` for u < warmup; then ``lr``, or ``min_lr + (lr - min_lr) *
    c(x)`` with ``x = (u - warmup) / (end - warmup)`` and ``c(x) = 1 - x`` or ``(1 + cos(pi *
    x)) / 2``; ``min_lr`` from ``end`` on, which is the last update where ``lr_decay_iters`` is
    null. Source: megatron-core, ``OptimizerParamScheduler.get_lr``.
    """
    warmup, start = decay.lr_warmup_iters, decay.lr_warmup_init
    if update < warmup:
        return start + (rates.lr - start) * update / warmup
    if decay.lr_decay_style == "constant":
        return rates.lr
    end = decay.lr_decay_iters or updates
    if update >= end:
        return rates.min_lr
    passed = (update - warmup) / max(1, end - warmup)
    linear = decay.lr_decay_style == "linear"
    left = 1 - passed if linear else (1 + math.cos(math.pi * passed)) / 2
    return rates.min_lr + left * (rates.lr - rates.min_lr)
