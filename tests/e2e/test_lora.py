"""sft/chat and sft/steerlm2 with adapters: they learn, resume to the bit, and spare the base."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import steerlm2_world
from card import fail_where_devices_mix
from nemotron_style.runtime.errors import InputError, Interrupted
from nemotron_style.runtime.step.context import StepContext, Stop
from nemotron_style.runtime.step.metrics import read_metrics
from nemotron_style.steps.blocks.checkpoint import torch_dist
from nemotron_style.steps.blocks.checkpoint.lora_folder import read_lora
from nemotron_style.steps.blocks.checkpoint.model_checkpoint import weights_digest
from nemotron_style.steps.blocks.data.jsonl import write_rows
from nemotron_style.steps.sft.chat import recipe
from nemotron_style.steps.sft.chat.config import Config, find_start_problems
from steerlm2_world import World

STEPS = 6
LORA = {
    "peft_scheme": "lora",
    "lora_tuning": {"target_modules": ["all"], "adapter_dim": 4, "adapter_dropout": 0.1},
}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    torch.set_num_threads(1)
    return steerlm2_world.make_world(tmp_path_factory.mktemp("world"))


def settings(**lora: Any) -> Config:
    train = {"global_batch_size": 4, "micro_batch_size": 4}
    sft = {"max_steps": STEPS, "val_check_interval": 3, "save_interval": 2}
    peft = {**LORA, "lora_tuning": {**LORA["lora_tuning"], **lora}}
    model = {
        "data": {"sample": True, "train_ds": train},
        "optim": {"name": "adamw", "lr": 3e-2},
        "peft": peft,
    }
    return Config.model_validate({"trainer": {"precision": "32", "sft": sft}, "model": model})


def context(path: Path, world: World, **changes: Any) -> StepContext:
    rows = []
    for number in range(12):
        word = steerlm2_world.WORDS[number % 3]
        turns = [("user", f"describe {word}"), ("assistant", f"h:0 {word}")]
        rows.append({"messages": [{"role": role, "content": text} for role, text in turns]})
    inputs = {"model": world.model, **changes.pop("inputs", {})}
    for slot in ("data", "validation"):
        (path / slot).mkdir(parents=True, exist_ok=True)
        write_rows(path / slot / "rows.jsonl", rows)
        inputs[slot] = SimpleNamespace(path=path / slot, facts={}, ref=f"{slot}:v1")
    return StepContext(run_dir=path / "run", inputs=inputs, outputs=("adapter",), **changes)


@pytest.fixture(scope="module")
def trained(world: World, tmp_path_factory: pytest.TempPathFactory) -> StepContext:
    ctx = context(tmp_path_factory.mktemp("trained"), world)
    recipe.run(settings(), ctx)
    return ctx


def metrics(ctx: StepContext) -> list[dict[str, Any]]:
    lines = read_metrics(ctx.run_dir / "metrics.jsonl")
    return [{k: v for k, v in one.items() if k != "tokens_per_second"} for one in lines]


def given(ctx: StepContext) -> SimpleNamespace:
    """The output of a run as the input of another."""
    output = ctx.output("adapter")
    return SimpleNamespace(path=output.path, facts=output.facts, ref="adapter:v1")


def test_adapters_learn_and_are_all_that_is_made_and_saved(
    world: World, trained: StepContext
) -> None:
    losses = [line["train_loss"] for line in metrics(trained) if "train_loss" in line]
    assert losses[-1] < losses[0] - 0.1
    assert weights_digest(world.model.path) == world.model.facts["weights_digest"]
    facts, folder = trained.output("adapter").facts, read_lora(trained.output("adapter").path)
    assert folder.base is not None
    assert folder.base.weights_digest == world.model.facts["weights_digest"]
    assert folder.base.ref == world.model.ref
    assert facts["base_weights_digest"] == folder.base.weights_digest
    assert facts["parameters"] == sum(one.numel() for one in folder.tensors.values())
    assert "canary" in facts
    assert (trained.output("adapter").path / "tokenizer" / "chat_template.jinja").is_file()
    newest = trained.checkpoints.newest()
    assert newest is not None
    held = torch_dist.tensor_shapes(newest.path / "state")
    assert all(name.endswith(("lora_A", "lora_B")) for name in held)
    table = (trained.run_dir / "samples" / "samples.md").read_text().splitlines()
    assert table[2] == f"| prompt | in the data | before | after {STEPS} steps |"


def test_a_stopped_run_ends_as_if_it_had_not_been(
    world: World, trained: StepContext, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With dropout, whose random numbers the state holds."""
    first = context(tmp_path, world, stop=Stop())

    def watch(done: int, _total: int, **_figures: float) -> None:
        first.stop.requested = done >= 3

    monkeypatch.setattr(first, "progress", watch)
    with pytest.raises(Interrupted):
        recipe.run(settings(), first)
    second = context(tmp_path, world, attempt=2)
    recipe.run(settings(), second)
    assert metrics(second) == metrics(trained)
    found, expected = (read_lora(given(ctx).path).tensors for ctx in (second, trained))
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_an_adapter_is_gone_on_from_upon_its_base_and_in_its_form_alone(
    world: World, trained: StepContext, tmp_path: Path
) -> None:
    again = context(tmp_path / "again", world, inputs={"adapter": given(trained)})
    recipe.run(settings(), again)
    before = [one["validation_loss"] for one in metrics(trained) if "validation_loss" in one][-1]
    first = metrics(again)[0]["train_loss"]
    assert first == pytest.approx(before, rel=0.1)
    assert first < metrics(trained)[0]["train_loss"] - 0.1

    other = SimpleNamespace(
        path=world.model.path, ref="other:v2", facts={"weights_digest": "sha256:" + "0" * 64}
    )
    wrong = {"model": other, "adapter": given(trained)}
    with pytest.raises(InputError) as caught:
        recipe.run(settings(), context(tmp_path / "wrong", world, inputs=wrong))
    assert world.model.facts["weights_digest"] in str(caught.value)
    assert "0" * 64 in str(caught.value)

    wide = context(tmp_path / "wide", world, inputs={"adapter": given(trained)})
    with pytest.raises(InputError, match=r"model\.peft\.lora_tuning\.adapter_dim") as caught:
        recipe.run(settings(adapter_dim=8), wide)
    assert "8" in str(caught.value)
    assert "4" in str(caught.value)


def test_a_card_holds_all_that_is_computed_with(world: World, tmp_path: Path) -> None:
    fail_where_devices_mix(lambda: recipe.run(settings(), context(tmp_path, world)))


def test_adapters_of_no_model_are_refused() -> None:
    [problem] = find_start_problems(settings(), continued=False)
    assert problem.key == "model.peft.peft_scheme"
    assert find_start_problems(settings(), continued=True) == []


def test_steerlm2_trains_adapters_and_produces_those_of_the_smallest_distance(
    world: World, tmp_path: Path
) -> None:
    lora = {**LORA, "lora_tuning": {"target_modules": ["all"], "adapter_dim": 4}}
    whole = steerlm2_world.settings(
        f"model.peft={json.dumps(lora)}", "model.optim.lr=0.006", "trainer.sft.max_epochs=2"
    )
    inputs = world.context(tmp_path / "inputs").inputs

    def start(name: str, **changes: Any) -> StepContext:
        return StepContext(run_dir=tmp_path / name, inputs=inputs, outputs=("adapter",), **changes)

    ctx = start("whole")
    steerlm2_world.run(whole, ctx)
    assert ctx.figures["distance_after"] < 0.95 * ctx.figures["distance_before"]
    assert ctx.figures["sampler_gap"] < 1e-4  # the start is the sampler: B is zero
    facts = ctx.output("adapter").facts
    assert facts["parent_weights_digest"] == world.model.facts["weights_digest"]
    assert facts["base_weights_digest"] == facts["parent_weights_digest"]
    names = sorted(path.name for path in ctx.output("adapter").path.iterdir())
    assert names == ["adapter_config.json", "adapter_model.safetensors", "base.json", "tokenizer"]

    stopped = start("stopped", stop=Stop(requested=False))
    stopped.progress = lambda done, _total, **_: setattr(stopped.stop, "requested", done >= 3)
    with pytest.raises(Interrupted):
        steerlm2_world.run(whole, stopped)
    ended = start("stopped", attempt=2)
    steerlm2_world.run(whole, ended)
    assert ended.figures == ctx.figures
    found, expected = (read_lora(given(one).path).tensors for one in (ended, ctx))
    assert all(torch.equal(found[name], expected[name]) for name in expected)
