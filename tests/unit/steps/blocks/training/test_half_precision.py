"""Models in bfloat16 with the optimizer that they have on CUDA: they train, stop and go on.

megatron-core's optimizer keeps a float32 copy of every weight, and saves it by the names of the
model's weights; that which data ranks share is another one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nemotron_style.steps.blocks.checkpoint.model_checkpoint import save_model
from nemotron_style.steps.blocks.model.language_model import build_model, unwrap, wrap
from nemotron_style.steps.blocks.model.lora import apply_lora
from nemotron_style.steps.blocks.model.parallel import initialize
from nemotron_style.steps.blocks.model.prefix_packing import Row, pack_rows
from nemotron_style.steps.blocks.reward.regression_model import load_trunk, pack_conversations
from nemotron_style.steps.blocks.settings.optimizer_config import OptimConfig
from nemotron_style.steps.blocks.settings.peft_config import LoraTuning
from nemotron_style.steps.blocks.training.microbatch import accumulate_gradients
from nemotron_style.steps.blocks.training.optimizer import CudaAdam
from nemotron_style.steps.blocks.training.training_state import load_state, save_state
from small_model import ONE_LAYER
from spread_job import spread_state


@pytest.fixture(autouse=True)
def _as_on_a_card() -> Iterator[None]:
    initialize(seed=1)
    with spread_state():
        yield


def chat_model(_folder: Path, *, shared: bool) -> nn.Module:
    model = build_model(ONE_LAYER, seed=3, dtype=torch.bfloat16, ddp=False)
    return wrap(unwrap(model), distributed_optimizer=shared)


def adapted_model(_folder: Path, *, shared: bool) -> nn.Module:
    model = unwrap(build_model(ONE_LAYER, seed=3, dtype=torch.bfloat16, ddp=False))
    apply_lora(model, LoraTuning(target_modules=["all"], adapter_dim=4), seed=4)
    return wrap(model, distributed_optimizer=shared)


def reward_model(folder: Path, *, shared: bool) -> nn.Module:
    if not (start := folder / "start").exists():
        (folder / "words").mkdir()
        (folder / "words" / "tokenizer.json").write_text('{"version": "1.0"}')
        model = build_model(ONE_LAYER, seed=3, dtype=torch.bfloat16, ddp=False)
        save_model(model, start, config=ONE_LAYER, tokenizer=folder / "words")
    return load_trunk(start, outputs=2, dtype=torch.bfloat16, distributed_optimizer=shared)[0]


ROWS = {
    reward_model: pack_conversations([[5, 6, 7], [8, 9, 10]]),
    **dict.fromkeys(
        (chat_model, adapted_model), pack_rows([Row([5, 6, 7, 8], [False, True, True, True])])
    ),
}


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("make", ROWS, ids=lambda make: make.__name__)
def test_a_model_goes_on_to_the_bit_from_what_was_saved(
    make: Callable[..., nn.Module],
    tmp_path: Path,
    shared: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def loss(outputs: Tensor, _: None) -> tuple[Tensor, Tensor]:
        distance = (outputs - 1).square().mean()
        return distance, distance.detach()

    def begin() -> tuple[nn.Module, CudaAdam]:
        with monkeypatch.context() as patch:
            patch.setattr(torch.cuda, "is_available", lambda: True)
            model: Any = make(tmp_path, shared=shared)
        assert model.ddp_config.use_distributed_optimizer is shared
        return model, CudaAdam(model, OptimConfig(lr=1e-2), gradient_clip=1.0)

    def step(model: nn.Module, optimizer: CudaAdam, number: int) -> float:
        [value] = accumulate_gradients(model, [(ROWS[make], None)], loss)
        optimizer.step(1e-2, step=number, loss=float(value))
        return float(value)

    def weights(model: Any) -> dict[str, Tensor]:
        return {name: weight.detach().clone() for name, weight in model.named_parameters()}

    model, optimizer = begin()
    start = weights(model)
    first = [step(model, optimizer, number) for number in (1, 2)]
    save_state(tmp_path / "state", model, optimizer, extra={"step": 2})
    third = step(model, optimizer, 3)
    assert first[0] > first[1] > third

    again, optimizer = begin()
    assert load_state(tmp_path / "state", again, optimizer) == {"step": 2}
    assert step(again, optimizer, 3) == third
    ended, resumed = weights(model), weights(again)
    assert all(torch.equal(ended[name], resumed[name]) for name in ended)
    trained = {name for name, weight in model.named_parameters() if weight.requires_grad}
    assert {name for name in start if not torch.equal(start[name], ended[name])} == trained
