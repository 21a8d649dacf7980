"""NeMo's cosine schedule at its corners."""

import math
from types import SimpleNamespace

import pytest
from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler

from nemotron_style.steps.blocks.settings.optimizer_config import OptimConfig
from nemotron_style.steps.blocks.training.lr_schedule import (
    cosine_annealing,
    megatron_decay,
    warn_if_held,
)


def schedule(**sched):
    return OptimConfig(lr=1.0, sched={"min_lr": 0.1, **sched})


def test_warm_up_is_linear_and_reaches_the_peak():
    config = schedule(warmup_steps=4)
    rates = [cosine_annealing(config, step, updates=20) for step in range(5)]
    assert rates == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])


def test_cosine_ends_at_min_lr_before_the_constant_steps():
    config = schedule(warmup_steps=2, constant_steps=5)
    assert cosine_annealing(config, 6, updates=17) == pytest.approx(
        0.1 + 0.9 * (1 + math.cos(math.pi * 4 / 10)) / 2
    )
    assert [cosine_annealing(config, step, updates=17) for step in (12, 15, 40)] == [0.1] * 3


def test_without_warm_up_the_first_step_has_the_full_rate():
    assert cosine_annealing(schedule(), 0, updates=10) == 1.0
    assert cosine_annealing(schedule(), 5, updates=10) == pytest.approx(0.55)


def test_a_run_that_is_all_warm_up_divides_by_nothing():
    assert cosine_annealing(schedule(warmup_steps=3), 3, updates=3) == 1.0
    assert cosine_annealing(schedule(warmup_steps=3), 4, updates=3) == 0.1


def test_constant_steps_beyond_the_run_hold_the_rate_and_are_told():
    config, said = schedule(warmup_steps=10, constant_steps=1000), []
    rates = [cosine_annealing(config, step, updates=40) for step in range(40)]
    assert rates[10:] == [1.0] * 30  # no cliff to min_lr after the warm-up
    warn_if_held(SimpleNamespace(say=said.append), config, updates=40)
    assert "stays at 1 and never falls to sched.min_lr 0.1" in said[0]
    for fitting in (schedule(warmup_steps=10, constant_steps=29), schedule(warmup_steps=50)):
        warn_if_held(SimpleNamespace(say=said.append), fitting, updates=40)
    assert len(said) == 1


@pytest.mark.parametrize("style", ["constant", "linear", "cosine"])
@pytest.mark.parametrize(("warmup", "start", "end"), [(0, 0.0, 9), (3, 0.2, 9), (3, 0.0, 20)])
def test_rates_are_those_of_megatron_cores_own_scheduler(style, warmup, start, end):
    """Side by side, through the warm-up, at its seam, and beyond the end of the decay."""
    settings = SimpleNamespace(
        lr_warmup_iters=warmup, lr_warmup_init=start, lr_decay_style=style, lr_decay_iters=end
    )
    group = {"lr": 0.0, "weight_decay": 0.0}
    theirs = OptimizerParamScheduler(
        SimpleNamespace(param_groups=[group]),
        init_lr=start,
        max_lr=1.0,
        min_lr=0.1,
        lr_warmup_steps=warmup,
        lr_decay_steps=end,
        lr_decay_style=style,
        start_wd=0.0,
        end_wd=0.0,
        wd_incr_steps=0,
        wd_incr_style="constant",
    )
    optimizer = SimpleNamespace(lr=1.0, min_lr=0.1)
    for update in range(15):
        ours = megatron_decay(optimizer, settings, update, updates=99)
        assert ours == pytest.approx(group["lr"], abs=1e-12), update
        theirs.step(1)
