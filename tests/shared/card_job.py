"""What two processes compute on a stand-in card, beside what they compute on the CPU."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from megatron.core import parallel_state

from activation_job import BOTH, CONFIG, KEEP_ALL, WAYS, rows
from card import card
from gradient import full_gradient
from nemotron_style.runtime.atomic import write_json
from nemotron_style.steps.blocks.model import parallel
from nemotron_style.steps.blocks.model.language_model import build_model, wrap
from nemotron_style.steps.blocks.model.lora import apply_lora
from nemotron_style.steps.blocks.settings.optimizer_config import OptimConfig
from nemotron_style.steps.blocks.settings.peft_config import LoraTuning
from nemotron_style.steps.blocks.training.microbatch import accumulate_nll
from nemotron_style.steps.blocks.training.optimizer import build_optimizer

RATE = 1e-2
MODEL = CONFIG.model_copy(update={"num_layers": 2})
# Without dropout: a card draws other numbers than the CPU.
LORA = LoraTuning(target_modules=["all"], adapter_dim=4, row_init_method="normal")
DIVISIONS = {
    "tensor": (BOTH, False),  # divided along the sequence too, and recomputed
    "tensor, adapters": (BOTH, True),
    "pipeline": (KEEP_ALL, False),
}


def begin(division: str) -> None:
    """Divide anew. megatron-core keeps a buffer, which must not lie on the other device."""
    parallel.initialize(WAYS[division.partition(",")[0]], seed=1)
    parallel_state.get_global_memory_buffer().buffer.clear()


def gradients(division: str) -> dict[str, torch.Tensor]:
    """The whole gradients of packed rows, on the first rank."""
    begin(division)
    kept, adapted = DIVISIONS[division]
    model = build_model(MODEL, seed=3, ddp=False, activations=kept)
    if adapted:
        apply_lora(model, LORA, seed=4)
    model = wrap(model)
    accumulate_nll(model, rows(), max_responses=6, max_tokens=40)
    return {name: one.cpu() for name, one in full_gradient(model).items()}


def gradient_gap(division: str) -> float:
    """Norm of the difference of the card's gradients and the CPU's, to that of the CPU's."""
    expected = gradients(division)
    with card():
        found = gradients(division)
    if not expected:  # they are gathered on the first rank
        return 0.0
    whole, other = (torch.cat([each[n].flatten() for n in expected]) for each in (expected, found))
    return ((whole - other).norm() / whole.norm()).item()


def update(*, distributed: bool) -> list[float]:
    """Loss and gradient norm of two updates."""
    model = wrap(build_model(MODEL, seed=3, ddp=False), distributed_optimizer=distributed)
    assert model.ddp_config.use_distributed_optimizer == distributed
    optimizer, figures = build_optimizer(model, OptimConfig(lr=RATE)), []
    for step in (1, 2):
        loss = accumulate_nll(model, rows(), max_responses=1, max_tokens=None)
        figures += [loss, optimizer.step(RATE, step=step, loss=loss)]
    return figures


def main(out: Path) -> None:
    """What a rank does."""
    gaps = {division: gradient_gap(division) for division in DIVISIONS}
    begin("data")
    updates = {"cpu": update(distributed=False)}
    with card(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda, "is_available", lambda: True)
        updates["whole"] = update(distributed=False)
        updates["distributed"] = update(distributed=True)
    if dist.get_rank() == 0:
        write_json(out / "figures.json", {"gaps": gaps, "updates": updates})
    parallel.finish()
