"""Adapters from a training to peft, and into a model: the same logits on every way."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from nemotron_style.runtime.step.context import StepContext
from nemotron_style.steps.blocks.checkpoint.model_checkpoint import recorded_weights_digest
from nemotron_style.steps.convert.megatron_to_hf import config as export_config
from nemotron_style.steps.convert.megatron_to_hf import recipe as export
from nemotron_style.steps.convert.merge_lora import config as merge_config
from nemotron_style.steps.convert.merge_lora import recipe as merge
from nemotron_style.steps.sft.chat import config as chat_config
from nemotron_style.steps.sft.chat import recipe as chat

peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")
IDS = torch.randint(5, 300, (2, 20), generator=torch.Generator().manual_seed(1))


def run(step: Any, schema: Any, path: Path, product: str, values: Any, **given: Any) -> Any:
    """The output of a step, as the next one takes it."""
    ctx = StepContext(run_dir=path, inputs=given, outputs=(product,))
    try:
        step.run(schema.Config.model_validate_json(json.dumps(values)), ctx)
    finally:
        ctx.metrics.close()
    output = ctx.output(product)
    return SimpleNamespace(path=output.path, facts=output.facts, ref=f"{path.name}:v1")


def tune(base: Any, path: Path) -> Any:
    """An adapter that six updates have taught something."""
    rows = [
        {"messages": [{"role": "user", "content": "Describe the river now."}]}
        | {"messages": [{"role": "user", "content": f"Say {word}."}, said(word)]}
        for word in ("deep", "cold", "blue", "calm")
    ]
    (file := path.parent / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    values = {
        "trainer": {"precision": "32", "sft": {"max_steps": 6}, "samples": {"prompts": 0}},
        "model": {
            "peft": {
                "peft_scheme": "lora",
                "lora_tuning": {"target_modules": ["all"], "adapter_dim": 4, "alpha": 8.0},
            },
            "optim": {"name": "adamw", "lr": 1e-2, "sched": {"min_lr": 1e-2}},
            "data": {"sample": True, "train_ds": {"global_batch_size": 4, "micro_batch_size": 4}},
        },
    }
    data = SimpleNamespace(path=file, facts={}, ref="rows:v1")
    return run(chat, chat_config, path, "adapter", values, model=base, data=data)


def said(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=IDS).logits  # type: ignore[no-any-return]


def load(path: Path) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)


def test_peft_and_the_merged_model_give_the_same_logits(small_toy: Any, tmp_path: Path) -> None:
    base = small_toy.model
    adapter = tune(base, tmp_path / "tune")
    assert adapter.facts["base_weights_digest"] == recorded_weights_digest(base)
    exported = run(export, export_config, tmp_path / "base", "model", {}, model=base)
    given = {"model": base, "adapter": adapter}
    merged = run(merge, merge_config, tmp_path / "merge", "model", {}, **given)
    whole = run(export, export_config, tmp_path / "whole", "model", {}, model=merged)

    model = load(exported.path)
    start = logits(model)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    beside = logits(peft.PeftModel.from_pretrained(model, adapter.path))
    summed = logits(load(whole.path))
    assert (beside - start).abs().max() > 0.1
    assert (beside - summed).abs().max() < 1e-5 * max(1.0, float(beside.abs().max()))
    after = {name.replace(".base_layer", ""): one for name, one in model.state_dict().items()}
    assert all(torch.equal(after[name], weight) for name, weight in before.items())
