"""A training step where models lie on a card: everything is made there, and nobody waits."""

from __future__ import annotations

import pytest

from card import card, waits
from nemotron_style.steps.blocks.model.language_model import build_model, unwrap, wrap
from nemotron_style.steps.blocks.model.lora import apply_lora
from nemotron_style.steps.blocks.model.parallel import initialize
from nemotron_style.steps.blocks.model.prefix_packing import Group
from nemotron_style.steps.blocks.settings.optimizer_config import OptimConfig
from nemotron_style.steps.blocks.settings.parallel_config import KEEP_ALL, Activations
from nemotron_style.steps.blocks.settings.peft_config import LoraTuning
from nemotron_style.steps.blocks.training.microbatch import accumulate_nll
from nemotron_style.steps.blocks.training.optimizer import build_optimizer
from small_model import ONE_LAYER

AGAIN = Activations(recompute_method="uniform")
LORA = LoraTuning(target_modules=["all"], adapter_dim=4, row_init_method="normal")
GROUPS = [Group([1, 2, 3], [[4, 5]]), Group([6], [[7, 8, 9]]), Group([2, 3], [[5]])]


def step(
    *, lora: bool = False, max_tokens: int | None = None, kept: Activations = KEEP_ALL
) -> tuple[float, float, list[str]]:
    """Loss and gradient norm of a step, and what the CPU waited for while it was queued."""
    initialize(seed=1)
    model = unwrap(build_model(ONE_LAYER, ddp=False, activations=kept))
    if lora:
        apply_lora(model, LORA, seed=3)
    model = wrap(model)
    optimizer = build_optimizer(model, OptimConfig(lr=1e-2))
    losses: list[float] = []

    def work() -> None:
        losses.append(accumulate_nll(model, GROUPS, max_responses=1, max_tokens=max_tokens))

    waited = waits(work)
    norm = optimizer.step(1e-2, step=1, loss=losses[0])
    after = accumulate_nll(model, GROUPS, max_responses=1, max_tokens=max_tokens)
    assert after < losses[0]
    return losses[0], norm, waited


@pytest.mark.parametrize(
    "options",
    [{}, {"lora": True}, {"max_tokens": 12}, {"kept": AGAIN}, {"lora": True, "kept": AGAIN}],
)
def test_a_step_is_that_of_the_cpu_and_the_card_is_waited_for_once(options: dict) -> None:
    """The sum of the losses of all micro-batches is read; nothing between them is."""
    loss, norm, _ = step(**options)
    with card():
        on_card = step(**options)
    assert on_card[:2] == pytest.approx((loss, norm), rel=1e-5)
    assert len(on_card[2]) == 1, on_card[2]
