"""An adapter and its base become one model that computes what both did; the rest is refused."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from nemotron_style.runtime.errors import InputError, StepFailed
from nemotron_style.runtime.step.context import Output, StepContext
from nemotron_style.steps.blocks.checkpoint.lora_folder import write_lora
from nemotron_style.steps.blocks.checkpoint.model_checkpoint import (
    TOKENIZER,
    WEIGHTS,
    full_weights,
    load_model,
    save_model,
    weights_digest,
)
from nemotron_style.steps.blocks.checkpoint.torch_dist_stream import WeightFolder
from nemotron_style.steps.blocks.data.chat.opening import tokenizer_facts
from nemotron_style.steps.blocks.data.chat_format import ChatPromptTokens
from nemotron_style.steps.blocks.data.tokenizer import Tokenizer
from nemotron_style.steps.blocks.data.tokenizer_training import train_tokenizer
from nemotron_style.steps.blocks.model.language_model import build_model
from nemotron_style.steps.blocks.model.lora import adapted_layers, apply_lora, lora_delta
from nemotron_style.steps.blocks.model.parallel import initialize
from nemotron_style.steps.blocks.settings.model_config import ModelConfig
from nemotron_style.steps.blocks.settings.peft_config import AdapterBase, LoraTuning
from nemotron_style.steps.convert.merge_lora import recipe
from nemotron_style.steps.convert.merge_lora.config import Config

SIZES = ModelConfig(
    num_layers=2,
    hidden_size=32,
    ffn_hidden_size=48,
    num_attention_heads=4,
    num_query_groups=2,
    vocab_size=300,
    max_sequence_length=64,
)
LORA = LoraTuning(
    target_modules=["all"], adapter_dim=3, alpha=6.0, row_init_method="normal"
)  # B is not zero, so that it changes something
WORDS = ChatPromptTokens(
    system_turn_start="<extra_id_0>", turn_start="<extra_id_1>", label_start="<extra_id_2>"
)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, an adapter that was trained on it, and the tokenizer of that training."""
    root = tmp_path_factory.mktemp("merge")
    initialize(seed=1)
    for name, size in (("tokenizer", 265), ("later", 290)):
        train_tokenizer(["a river is a river that is wet"] * 9, size, root / name, tokens=WORDS)
    model = build_model(SIZES, seed=3, ddp=False, initial=0.2)
    save_model(model, root / "base", config=SIZES, tokenizer=root / "tokenizer")
    half = build_model(SIZES, seed=3, ddp=False, initial=0.2, dtype=torch.bfloat16)
    save_model(half, root / "half", config=SIZES, tokenizer=root / "tokenizer")
    apply_lora(model, LORA, seed=5)
    digest = weights_digest(root / "base")
    write_lora(
        root / "adapter",
        dict(full_weights(model, adapters=True)),
        lora=LORA,
        base=AdapterBase(weights_digest=digest, ref="base:v1", sizes=SIZES),
        tokenizer=root / "later",
    )
    return root


def merge(made: Path, run_dir: Path, *, base: str = "base", **values: Any) -> StepContext:
    adapter = values.pop("adapter", made / "adapter")
    given = {"model": made / base, "adapter": adapter}
    inputs = {
        slot: SimpleNamespace(path=path, facts={}, ref=f"{slot}:v1") for slot, path in given.items()
    }
    ctx = StepContext(run_dir=run_dir, inputs=inputs, outputs=("model",))  # type: ignore[arg-type]
    recipe.run(Config.model_validate_json(json.dumps(values)), ctx)
    return ctx


@pytest.fixture(scope="module")
def merged(made: Path, tmp_path_factory: pytest.TempPathFactory) -> Output:
    return merge(made, tmp_path_factory.mktemp("run")).output("model")


def test_the_sum_has_the_weights_of_the_base_and_what_the_adapter_adds(
    made: Path, merged: Output
) -> None:
    output = merged
    model, _ = load_model(made / "base", ddp=False)
    expected = {name: tensor.clone() for name, tensor in full_weights(model)}
    apply_lora(model, LORA, seed=5)
    layers = dict(adapted_layers(model))
    assert len(layers) == 8
    for name, layer in layers.items():
        expected[f"{name}.weight"] += lora_delta(layer)
    for name, tensor in WeightFolder(output.path / WEIGHTS).weights():
        assert torch.equal(tensor, expected[name]) == (f"{name}" not in layers)
        assert torch.allclose(tensor, expected[name], rtol=0, atol=1e-6), name
    assert output.facts["weights_digest"] == weights_digest(output.path)
    assert output.facts["parent_weights_digest"] == weights_digest(made / "base")
    assert output.facts["max_logit_difference"] < 1e-5
    assert output.facts["adapter_base"] == "recorded"


def test_the_tokenizer_of_the_training_wins(made: Path, merged: Output) -> None:
    files = [at / "tokenizer.json" for at in (made / "tokenizer", made / "later")]
    written = (merged.path / TOKENIZER / "tokenizer.json").read_bytes()
    assert [file.read_bytes() == written for file in files] == [False, True]
    assert merged.facts["tokenizer_of"] == "adapter"
    own = tokenizer_facts(Tokenizer(made / "later"))
    assert {name: merged.facts[name] for name in own} == own


def test_the_sum_is_rounded_once_and_the_record_says_what_that_changed(
    made: Path, tmp_path: Path
) -> None:
    (base := tmp_path / "of another base").mkdir()
    for file in ("adapter_config.json", "adapter_model.safetensors"):
        (base / file).write_bytes((made / "adapter" / file).read_bytes())
    output = merge(made, tmp_path, base="half", adapter=base).output("model")
    assert output.facts["dtype"] == "bfloat16"
    assert output.facts["max_logit_difference"] < 1e-5
    assert output.facts["rounded_logit_difference"] > 1e-3
    assert (output.facts["adapter_base"], output.facts["tokenizer_of"]) == ("not recorded", "model")
    exact = merge(made, tmp_path / "f", base="half", adapter=base, dtype="float32").output("model")
    wide = dict(WeightFolder(exact.path / WEIGHTS).weights())
    for name, tensor in WeightFolder(output.path / WEIGHTS).weights():
        assert torch.equal(tensor, wide[name].bfloat16()), name


def test_another_base_is_refused_with_both_digests(made: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="belongs to another base than model:v1") as raised:
        merge(made, tmp_path, base="half")
    [problem] = raised.value.problems
    assert weights_digest(made / "half") in problem.got
    assert problem.allowed == weights_digest(made / "base")


def test_a_sum_that_computes_something_else_is_not_produced(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recipe, "put_beside", lambda *_: None)
    with pytest.raises(StepFailed, match="max_logit_difference: the converted model computes"):
        merge(made, tmp_path)


def test_numbers_that_are_not_finite_are_refused(made: Path, tmp_path: Path) -> None:
    (folder := tmp_path / "broken").mkdir()
    (folder / "adapter_config.json").write_bytes(
        (made / "adapter" / "adapter_config.json").read_bytes()
    )
    tensors = load_file(made / "adapter" / "adapter_model.safetensors")
    tensors[min(tensors)][0, 0] = torch.inf
    save_file(tensors, folder / "adapter_model.safetensors")
    with pytest.raises(InputError, match="not finite"):
        merge(made, tmp_path, adapter=folder)
