"""Adapters in training are peft's: the same log-probs and gradients from the same A and B."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from family_models import VARIANTS, write_model
from gradient import full_gradient
from nemotron_style.steps.blocks.checkpoint.families.adapters import export_adapter, linear_layers
from nemotron_style.steps.blocks.checkpoint.hf_config import read_sizes
from nemotron_style.steps.blocks.checkpoint.hf_weights import fill_model, import_weights
from nemotron_style.steps.blocks.checkpoint.lora_folder import write_lora
from nemotron_style.steps.blocks.checkpoint.model_checkpoint import full_weights
from nemotron_style.steps.blocks.checkpoint.safetensors_folder import TensorFolder
from nemotron_style.steps.blocks.model import parallel
from nemotron_style.steps.blocks.model.language_model import build_model, wrap
from nemotron_style.steps.blocks.model.logprob import response_logprobs
from nemotron_style.steps.blocks.model.lora import apply_lora
from nemotron_style.steps.blocks.model.prefix_packing import Group, pack
from nemotron_style.steps.blocks.settings.peft_config import AdapterBase, LoraTuning

peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")
ROW = torch.randint(3, 64, (1, 12), generator=torch.Generator().manual_seed(1))
PROMPT = 5
LORA = LoraTuning(target_modules=["all"], adapter_dim=4, alpha=8, row_init_method="normal")
FAMILIES = list({family: name for name, (family, _) in VARIANTS.items()}.values())
DIGEST = "sha256:" + "0" * 64


def ours(folder: Path) -> Any:
    """The model of a Hugging Face folder with adapters, before DDP."""
    sizes = read_sizes(folder)
    model = build_model(sizes, dtype=torch.float64, initial=None, ddp=False)
    fill_model(model, import_weights(TensorFolder(folder).read, sizes))
    apply_lora(model, LORA, seed=3)
    return model


def theirs(folder: Path, adapter: Path) -> Any:
    """The same of transformers and peft, to be trained."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        base = transformers.AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float64, attn_implementation="eager"
        )
        return peft.PeftModel.from_pretrained(base, adapter, is_trainable=True).double().eval()


@pytest.mark.parametrize("variant", ["llama 3", "qwen 2", "gemma"])
def test_logprobs_and_gradients_are_those_of_peft(variant: str, tmp_path: Path) -> None:
    """In float64, but for what transformers does in float32: in float32 alone rounding is 3e-6."""
    parallel.initialize(seed=1)
    write_model(variant, tmp_path / "base", ROW)
    sizes, model = read_sizes(tmp_path / "base"), ours(tmp_path / "base")
    (tmp_path / "words").mkdir()
    # they were drawn in float32, so nothing is lost
    tensors = {name: whole.float() for name, whole in full_weights(model, adapters=True)}
    base = AdapterBase(weights_digest=DIGEST, sizes=sizes)
    write_lora(tmp_path / "lora", tensors, lora=LORA, base=base, tokenizer=tmp_path / "words")

    model = wrap(model)
    ids = ROW[0].tolist()
    found = response_logprobs(model, pack([Group(ids[:PROMPT], [ids[PROMPT:]])]))[0, 0]
    (-found.mean()).backward()
    gradients = full_gradient(model)

    other = theirs(tmp_path / "base", tmp_path / "lora")
    logits = other(input_ids=ROW).logits[0, PROMPT - 1 : -1]
    expected = logits.log_softmax(-1).gather(1, ROW[0, PROMPT:, None])[:, 0]
    (-expected.mean()).backward()
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    their = {
        name.removeprefix("base_model.model.").replace(".default.weight", ""): weight.grad
        for name, weight in other.named_parameters()
        if weight.requires_grad
    }
    pairs = []
    for layer in linear_layers(sizes):
        lora_A, lora_B = (gradients[f"{layer}.lora_{factor}"] for factor in "AB")
        parts = export_adapter(layer, lora_A, lora_B, sizes)
        # queries, keys and values share one A here, and peft has one each
        pairs.append((lora_A, sum(their.pop(f"{name}.lora_A") for name in parts)))
        pairs += [(rows, their.pop(f"{name}.lora_B")) for name, (_, rows) in parts.items()]
    assert not their
    assert all((one - other).norm() < 2e-6 * other.norm() for one, other in pairs)
    mine, other = (torch.cat([one.flatten() for one in side]) for side in zip(*pairs, strict=True))
    assert (mine - other).norm() < 1e-6 * other.norm()


@pytest.mark.parametrize("variant", FAMILIES)
def test_every_family_has_adapters_at_every_layer(variant: str, tmp_path: Path) -> None:
    parallel.initialize(seed=1)
    write_model(variant, tmp_path, ROW)
    model = ours(tmp_path)
    tensors = dict(full_weights(model, adapters=True))
    shapes = linear_layers(read_sizes(tmp_path))
    assert set(tensors) == {f"{layer}.lora_{factor}" for layer in shapes for factor in "AB"}
    for layer, (out, wide) in shapes.items():
        assert tensors[f"{layer}.lora_A"].shape == (4, wide)
        assert tensors[f"{layer}.lora_B"].shape == (out, 4)
    (-response_logprobs(model, pack([Group([1, 2], [[3, 4]])])).sum()).backward()
    assert all(p.grad.norm() > 0 for p in model.parameters() if p.requires_grad)
