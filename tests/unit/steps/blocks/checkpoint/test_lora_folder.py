"""An adapter as peft has it: the same logits there and back, the same bits, and every refusal."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from family_models import write_model
from nemotron_style.runtime.errors import InputError
from nemotron_style.steps.blocks.checkpoint.families.adapters import LayerAdapter, linear_layers
from nemotron_style.steps.blocks.checkpoint.hf_config import read_sizes
from nemotron_style.steps.blocks.checkpoint.hf_weights import fill_model, import_weights
from nemotron_style.steps.blocks.checkpoint.logit_parity import model_logits
from nemotron_style.steps.blocks.checkpoint.lora_folder import LoraFolder, read_lora, write_lora
from nemotron_style.steps.blocks.checkpoint.safetensors_folder import TensorFolder
from nemotron_style.steps.blocks.model import parallel
from nemotron_style.steps.blocks.model.language_model import build_model
from nemotron_style.steps.blocks.settings.peft_config import AdapterBase, LoraTuning

peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")
ROWS = torch.randint(3, 64, (2, 12), generator=torch.Generator().manual_seed(1))
LIMIT = 1e-5
DIGEST = "sha256:" + "0" * 64
# those that differ in names, biases, gates, and what is joined
VARIANTS = ("llama 3", "qwen 2", "phi 3", "gemma 2", "nemotron")
# what people give peft, besides a rank
GIVEN: dict[str, dict[str, Any]] = {
    "queries and values": {"target_modules": ["q_proj", "v_proj"]},
    "all": {"target_modules": "all-linear", "lora_alpha": 24},
    "an expression": {"target_modules": r".*\.layers\.[13]\..*(k_proj|up_proj|down_proj)"},
    "layers": {"target_modules": ["o_proj", "gate_proj"], "layers_to_transform": [0, 2]},
    "patterns": {
        "target_modules": ["q_proj", "k_proj", "o_proj"],
        "rank_pattern": {"k_proj": 2, "layers.1.self_attn.q_proj": 5},
        "alpha_pattern": {"q_proj": 3},
        "use_rslora": True,
    },
}


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    parallel.initialize(seed=1)
    folders = {name: tmp_path_factory.mktemp("base") for name in VARIANTS}
    for name, folder in folders.items():
        write_model(name, folder, ROWS)
    return folders


def load_base(folder: Path) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return transformers.AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, attn_implementation="eager"
        ).eval()


def make_adapter(base: Path, path: Path, **settings: Any) -> Tensor:
    """Write an adapter with peft; the logits of the base with it."""
    settings = {"r": 4, "lora_alpha": 8, **settings}
    model = peft.get_peft_model(load_base(base), peft.LoraConfig(**settings)).eval()
    randomise({name: weight for name, weight in model.named_parameters() if "lora_" in name})
    model.save_pretrained(path)
    with torch.no_grad():
        logits: Tensor = model(input_ids=ROWS).logits
    return logits


def randomise(tensors: Mapping[str, Tensor]) -> None:
    draw = torch.Generator().manual_seed(3)
    for tensor in tensors.values():
        tensor.data.copy_(torch.randn(tensor.shape, generator=draw) * 0.07)


def merged_logits(base: Path, adapters: Mapping[str, LayerAdapter]) -> Tensor:
    """Those of our model, whose weights have the adapters added."""
    sizes = read_sizes(base)
    model = build_model(sizes, ddp=False, initial=None)
    weights = dict(import_weights(TensorFolder(base).read, sizes))
    for layer, adapter in adapters.items():
        weights[f"{layer}.weight"] = weights[f"{layer}.weight"] + adapter.delta
    fill_model(model, weights.items())
    return model_logits(model, ROWS)


@pytest.mark.parametrize("given", GIVEN)
def test_what_peft_wrote_is_read_exactly(
    bases: dict[str, Path], tmp_path: Path, given: str
) -> None:
    base = bases["llama 3"]
    logits = make_adapter(base, tmp_path, **GIVEN[given])
    found = read_lora(tmp_path, read_sizes(base))
    assert found.base is None
    assert (logits - merged_logits(base, {})).abs().max() > 0.001
    assert (logits - merged_logits(base, found.adapters)).abs().max() < LIMIT


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_family_is_read_and_written_for_peft(
    bases: dict[str, Path], tmp_path: Path, variant: str
) -> None:
    base, sizes = bases[variant], read_sizes(bases[variant])
    logits = make_adapter(base, tmp_path / "in", target_modules="all-linear")
    found = read_lora(tmp_path / "in", sizes)
    assert (logits - merged_logits(base, found.adapters)).abs().max() < LIMIT
    tensors = {
        f"{layer}.lora_{side}": torch.empty(shape)
        for layer, (out, into) in linear_layers(sizes).items()
        for side, shape in (("A", (3, into)), ("B", (out, 3)))
    }
    randomise(tensors)
    write(tmp_path / "out", tensors, sizes)
    read = read_lora(tmp_path / "out")
    assert {name: tensor.tolist() for name, tensor in read.tensors.items()} == {
        name: tensor.tolist() for name, tensor in tensors.items()
    }
    model = load_base(base)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    with_adapter = peft.PeftModel.from_pretrained(model, tmp_path / "out").eval()
    with torch.no_grad():
        logits = with_adapter(input_ids=ROWS).logits
        assert (logits - merged_logits(base, read.adapters)).abs().max() < LIMIT
        after = with_adapter.unload().state_dict()
        assert all(torch.equal(after[name], weight) for name, weight in before.items())


def write(path: Path, tensors: Mapping[str, Tensor], sizes: Any, **settings: Any) -> None:
    tokenizer = path.parent / "tokenizer of the training"
    tokenizer.mkdir(exist_ok=True)
    (tokenizer / "tokenizer.json").write_text("{}")
    base = AdapterBase(weights_digest=DIGEST, ref="base:v1", sizes=sizes)
    lora = LoraTuning.model_validate({"alpha": 6.0, "adapter_dim": 3, **settings})
    write_lora(path, tensors, lora=lora, base=base, tokenizer=tokenizer)


def test_ranks_that_differ_and_layers_without_an_adapter_go_there_and_back(
    bases: dict[str, Path], tmp_path: Path
) -> None:
    base, sizes = bases["llama 3"], read_sizes(bases["llama 3"])
    make_adapter(base, tmp_path / "in", target_modules=["q_proj", "v_proj", "down_proj"], r=3)
    first = read_lora(tmp_path / "in", sizes)
    tensors = {name: one for name, one in first.tensors.items() if "layers.2.mlp" not in name}
    assert len(first.tensors["decoder.layers.0.self_attention.linear_qkv.lora_A"]) == 6
    alpha = 3 * first.adapters["decoder.layers.0.mlp.linear_fc2"].scale
    write(tmp_path / "out", tensors, sizes, alpha=alpha)
    second = read_lora(tmp_path / "out")
    assert second.tokenizer == tmp_path / "out" / "tokenizer"
    assert second.base
    assert second.base.ref == "base:v1"
    same_values(second, {name: one for name, one in first.adapters.items() if name in str(tensors)})
    logits = peft.PeftModel.from_pretrained(load_base(base), tmp_path / "out").eval()
    with torch.no_grad():
        difference = logits(input_ids=ROWS).logits - merged_logits(base, second.adapters)
    assert difference.abs().max() < LIMIT


def same_values(found: LoraFolder, expected: Mapping[str, LayerAdapter]) -> None:
    assert set(found.adapters) == set(expected)
    for name, adapter in expected.items():
        assert torch.allclose(found.adapters[name].delta, adapter.delta, atol=1e-7)


def test_an_adapter_to_go_on_from_has_the_ranks_layers_and_scale_of_the_config(
    bases: dict[str, Path], tmp_path: Path
) -> None:
    sizes = read_sizes(bases["llama 3"])
    make_adapter(bases["llama 3"], tmp_path, target_modules=["o_proj"], r=4)
    found = read_lora(tmp_path, sizes)
    own = {"target_modules": ["attention_dense"], "adapter_dim": 4, "alpha": 8.0}
    assert found.find_misfits(LoraTuning.model_validate(own), where="a") == []
    problems = found.find_misfits(LoraTuning(adapter_dim=8), where="a")
    assert [(one.key.rpartition(".")[2], one.got, one.allowed) for one in problems] == [
        ("target_modules", "self_attention.linear_qkv", "self_attention.linear_proj"),
        ("adapter_dim", "8", "4"),
        ("alpha", "1.0", "2.0"),
    ]


# -- what is refused


@pytest.fixture
def folder(bases: dict[str, Path], tmp_path: Path) -> Path:
    make_adapter(bases["llama 3"], tmp_path, target_modules=["q_proj"])
    return tmp_path


def change(folder: Path, **values: Any) -> None:
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"peft_type": "IA3"}, "peft_type: the adapter is of another kind; got 'IA3'.*merge_and"),
        ({"use_dora": True}, "use_dora: DoRA scales"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save: whole layers were trained"),
        ({"bias": "all"}, "bias: biases of the base were trained too; got all"),
        ({"a_key_of_tomorrow": 1}, "a_key_of_tomorrow: this may change"),
        ({"init_lora_weights": "pissa_niter_4"}, "path_initial_model_for_weight_conversion"),
        ({"r": 0, "lora_alpha": "x"}, "r: is no such number; got 0.*\n.*lora_alpha"),
        ({"target_modules": "("}, "target_modules: is no regular expression"),
        ({"target_modules": None}, "target_modules: names no modules"),
        ({"target_modules": ["k_proj"]}, "q_proj: adapter_config.json does not name this module"),
        ({"r": 3}, r"q_proj.lora_A.weight: a tensor has another shape.*got \[4, 32\]; .*\[3, 32\]"),
    ],
)
def test_what_computes_something_else_is_refused_by_its_key(
    bases: dict[str, Path], folder: Path, values: dict[str, Any], message: str
) -> None:
    change(folder, **values)
    with pytest.raises(InputError, match=rf"(?s){message}"):
        read_lora(folder, read_sizes(bases["llama 3"]))


def test_tensors_that_have_no_place_are_refused(bases: dict[str, Path], folder: Path) -> None:
    file = folder / "adapter_model.safetensors"
    tensors = load_file(file)
    name = "base_model.model.model.embed_tokens.lora_embedding_A"
    first = min(tensors)
    save_file({name: torch.ones(2, 2), **{k: v for k, v in tensors.items() if k != first}}, file)
    with pytest.raises(InputError) as raised:
        read_lora(folder, read_sizes(bases["llama 3"]))
    assert [(one.key, one.what) for one in raised.value.problems] == [
        (name, "this tensor belongs to no linear layer of a model of these sizes"),
        (first, "a tensor is missing"),
    ]


def test_pickles_and_folders_that_are_no_adapter_are_refused(
    bases: dict[str, Path], folder: Path
) -> None:
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    with pytest.raises(InputError, match=r"adapter_model.bin: pickled weights are not read"):
        read_lora(folder)
    with pytest.raises(InputError, match=r"is no LoRA adapter; allowed: .*adapter_config.json"):
        read_lora(bases["llama 3"])


def test_an_adapter_of_the_world_needs_the_sizes_of_its_base(folder: Path) -> None:
    with pytest.raises(InputError, match="does not say what sizes its base has"):
        read_lora(folder)
