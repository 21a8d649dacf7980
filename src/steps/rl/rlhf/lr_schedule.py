"""The learning rate over updates, as megatron-core's ``OptimizerParamScheduler`` has it."""

from __future__ import annotations

import math

from nemotron_style.steps.rl.rlhf.nemo_rl import MegatronCfg


def learning_rate(config: MegatronCfg, update: int, *, updates: int) -> float:
    """Learning rate of the update number ``update`` (from 0) of ``updates``.

    Linear from ``lr_warmup_init`` to ``lr`` over ``lr_warmup_iters``; then constant, or along a
    line or a half cosine to ``min_lr`` at ``lr_decay_iters`` (the whole run where it is null).
    """
    optimizer, scheduler = config.optimizer, config.scheduler
    warmup, start = scheduler.lr_warmup_iters, scheduler.lr_warmup_init
    if update < warmup:
        return start + (optimizer.lr - start) * update / warmup
    if scheduler.lr_decay_style == "constant":
        return optimizer.lr
    decay = scheduler.lr_decay_iters or updates
    if update >= decay:
        return optimizer.min_lr
    share = (update - warmup) / max(1, decay - warmup)
    left = (
        1 - share if scheduler.lr_decay_style == "linear" else (1 + math.cos(math.pi * share)) / 2
    )
    return optimizer.min_lr + left * (optimizer.lr - optimizer.min_lr)
