"""The state of a run that trains adapters: what it holds, and upon which model it goes on."""

import pytest
import torch

from nemotron_style.runtime.errors import InputError
from nemotron_style.steps.blocks.checkpoint import torch_dist
from nemotron_style.steps.blocks.checkpoint.model_checkpoint import full_weights
from nemotron_style.steps.blocks.model import parallel
from nemotron_style.steps.blocks.model.language_model import build_model, wrap
from nemotron_style.steps.blocks.model.lora import apply_lora
from nemotron_style.steps.blocks.model.prefix_packing import Group
from nemotron_style.steps.blocks.settings.optimizer_config import OptimConfig
from nemotron_style.steps.blocks.settings.peft_config import LoraTuning
from nemotron_style.steps.blocks.training.microbatch import accumulate_nll
from nemotron_style.steps.blocks.training.optimizer import build_optimizer
from nemotron_style.steps.blocks.training.training_state import load_state, save_state
from small_model import ONE_LAYER

GROUPS = [Group([1, 2, 3, 4], [[5, 6, 7], [8, 9]]), Group([4, 5], [[9], [7, 2, 1]])]


def start(*, seed):
    """A model with adapters that have dropout, and their optimizer."""
    parallel.initialize(seed=seed)
    model = build_model(ONE_LAYER, ddp=False)
    lora = LoraTuning(target_modules=["all"], adapter_dim=2, adapter_dropout=0.3)
    apply_lora(model, lora, seed=seed)
    model = wrap(model)
    return model, build_optimizer(model, OptimConfig())


def train(model, optimizer):
    losses = []
    for step in range(2):
        losses.append(accumulate_nll(model, GROUPS, max_responses=2))
        optimizer.step(1e-2, step=step, loss=losses[-1])
    return losses


def test_adapters_go_on_as_if_they_had_never_stopped_upon_their_base_alone(tmp_path):
    model, optimizer = start(seed=1)
    first = train(model, optimizer)
    save_state(tmp_path, model, optimizer, extra={"step": 2}, base="sha256:one")
    expected = train(model, optimizer)
    assert expected[0] != first[0]

    names = torch_dist.tensor_shapes(tmp_path / "state")
    assert len(names) == 4 * 2 * 3  # of each layer A and B, each with two moments
    assert all(name.endswith(("lora_A", "lora_B")) for name in names)

    other, resumed = start(seed=2)
    for base in ("sha256:two", ""):
        with pytest.raises(InputError, match="sha256:one"):
            load_state(tmp_path, other, resumed, base=base)
    assert load_state(tmp_path, other, resumed, base="sha256:one") == {"step": 2}
    assert train(other, resumed) == expected
    found = (dict(full_weights(one, adapters=True)) for one in (model, other))
    assert all(map(torch.equal, *(each.values() for each in found)))
