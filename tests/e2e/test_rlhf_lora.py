"""rl/rlhf with adapters: one copy of the weights is policy and reference, and it stays as it is."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import rlhf_world as world_of
from nemotron_style.runtime.errors import InputError, Interrupted
from nemotron_style.runtime.step.context import StepContext, Stop
from nemotron_style.steps.blocks.checkpoint.lora_folder import read_lora
from nemotron_style.steps.blocks.checkpoint.model_checkpoint import load_model
from nemotron_style.steps.blocks.training.start_policy import StartPolicy
from nemotron_style.steps.rl.rlhf import recipe
from parameter_bytes import count_parameter_bytes

LORA = ("policy.megatron_cfg.peft.enabled=true", "policy.megatron_cfg.optimizer.lr=1e-2")
LORA = (*LORA, "grpo.val_at_end=false", "policy.megatron_cfg.peft.dim=4")
CLOCK = re.compile("second|timing|latency")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return world_of.make_world(tmp_path_factory.mktemp("rlhf"))


def train(world: Any, run_dir: Path, *overrides: str, **changes: Any) -> StepContext:
    judge = changes.pop("judge", world_of.Judge())
    changes = {"validation": None, "outputs": ("adapter",), **changes}
    with judge.serve():
        return world.train_in(run_dir, f'judge.url="{judge.url}"', *LORA, *overrides, **changes)


def steps_of(ctx: StepContext) -> list[dict[str, float]]:
    lines = (line for line in ctx.metrics.history() if "reward" in line)
    return [{name: x for name, x in line.items() if not CLOCK.search(name)} for line in lines]


def tensors_of(ctx: StepContext) -> dict[str, Any]:
    tensors = read_lora(ctx.output("adapter").path).tensors
    return {name: tensor.tolist() for name, tensor in tensors.items()}


def weigh(monkeypatch: pytest.MonkeyPatch, world: Any, run_dir: Path, *words: str) -> int:
    """The bytes of parameters that a run holds while it trains, less those held before it."""
    held, report = [], recipe.report_step

    def look(*given: Any, **named: Any) -> None:
        held.append(count_parameter_bytes())
        report(*given, **named)

    monkeypatch.setattr(recipe, "report_step", look)
    before = count_parameter_bytes()
    outputs = ("model",) if "policy.megatron_cfg.peft.enabled=false" in words else ("adapter",)
    train(world, run_dir, "grpo.max_num_steps=1", *words, outputs=outputs)
    return held[0] - before


@pytest.fixture(scope="module")
def plain(world: Any, tmp_path_factory: pytest.TempPathFactory) -> StepContext:
    return train(world, tmp_path_factory.mktemp("plain"))


def test_adapters_are_learnt_and_nothing_else_is_written(world: Any, plain: StepContext) -> None:
    output = plain.output("adapter")
    names = {"adapter_config.json", "adapter_model.safetensors", "base.json", "tokenizer"}
    assert {path.name for path in output.path.iterdir()} == names
    folder = read_lora(output.path)
    assert folder.base
    assert folder.base.weights_digest == world.model.facts["weights_digest"]
    assert output.facts["base_weights_digest"] == world.model.facts["weights_digest"]
    assert len(folder.adapters) == 4 * folder.base.sizes.num_layers
    assert all(one.lora_B.abs().max() > 0 for one in folder.adapters.values())
    first, *later = steps_of(plain)
    assert first["gate/token_mult_prob_error"] == pytest.approx(1, abs=1e-5)
    assert first["gate/kl_to_start"] == first["hacking/kl_to_start"] == 0
    assert all(line["hacking/kl_to_start"] > 0 for line in later)


def test_kl_and_losses_are_those_with_a_second_copy_as_reference(
    world: Any, plain: StepContext, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def copy(ctx: StepContext, model: Any, _: Any, *, dtype: Any) -> StartPolicy:
        return StartPolicy(
            model, copy=load_model(ctx.input("model").path, dtype=dtype, ddp=False)[0]
        )

    monkeypatch.setattr(recipe, "StartPolicy", SimpleNamespace(of=copy))
    other = train(world, tmp_path)
    for mine, own in zip(steps_of(other), steps_of(plain), strict=True):
        assert mine == pytest.approx(own, rel=1e-6, abs=1e-9)
    first, second = (read_lora(ctx.output("adapter").path).tensors for ctx in (other, plain))
    assert all(torch.allclose(first[name], second[name], atol=1e-4) for name in second)


def test_policy_and_reference_are_one_copy_of_the_weights(
    world: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, _ = load_model(world.model.path, ddp=False)
    weights = sum(one.nbytes for one in model.parameters())
    whole = weigh(monkeypatch, world, tmp_path / "w", "policy.megatron_cfg.peft.enabled=false")
    adapted = weigh(monkeypatch, world, tmp_path / "a")
    assert whole == 2 * weights
    assert weights < adapted < 1.2 * weights


def test_a_stopped_run_goes_on_bit_by_bit_upon_its_base_alone(
    world: Any, plain: StepContext, tmp_path: Path
) -> None:
    stop, judge = Stop(), world_of.Judge()

    def ask_to_stop(number: int, _body: Any) -> None:
        stop.requested = number >= 3 * 4 * 2 + 12 + 6  # in the middle of the second step

    judge.fault = ask_to_stop
    with pytest.raises(Interrupted):
        train(world, tmp_path, stop=stop, judge=judge)
    switched = "policy.megatron_cfg.peft.enabled=false"
    with pytest.raises(InputError, match="all weights are trained"):
        train(world, tmp_path, switched, attempt=2, outputs=("model",))
    ctx = train(world, tmp_path, attempt=3)
    assert tensors_of(ctx) == tensors_of(plain)
    assert [line["loss"] for line in steps_of(ctx)] == [line["loss"] for line in steps_of(plain)]


def test_a_run_that_goes_on_from_an_adapter_is_held_to_it(
    world: Any, plain: StepContext, tmp_path: Path
) -> None:
    given = SimpleNamespace(path=plain.output("adapter").path, ref="adapter:v1", facts={})
    ctx = train(world, tmp_path, "grpo.max_num_steps=2", adapter=given)
    first, second = steps_of(ctx)
    assert first["gate/kl_to_start"] == first["hacking/kl_to_start"] == 0
    assert second["hacking/kl_to_start"] > 0
    assert tensors_of(ctx) != tensors_of(plain)
