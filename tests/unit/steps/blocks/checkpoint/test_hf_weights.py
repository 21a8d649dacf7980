"""Hugging Face's Llama: the same bits there and back, the same logits, and every refusal."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from nemotron_style.runtime.errors import InputError, StepFailed
from nemotron_style.steps.blocks.checkpoint import logit_parity
from nemotron_style.steps.blocks.checkpoint.hf_config import build_settings, read_sizes
from nemotron_style.steps.blocks.checkpoint.hf_weights import (
    check_tensors,
    expected_shapes,
    export_tensor,
    export_weights,
    fill_model,
    import_weights,
)
from nemotron_style.steps.blocks.checkpoint.logit_parity import (
    LogitParity,
    compare_logits,
    model_logits,
    sample_rows,
)
from nemotron_style.steps.blocks.checkpoint.model_checkpoint import (
    full_shapes,
    full_weights,
    weights_digest,
)
from nemotron_style.steps.blocks.checkpoint.reference_model import reference_logits
from nemotron_style.steps.blocks.checkpoint.safetensors_folder import (
    INDEX,
    SINGLE,
    TensorFolder,
    write_tensors,
)
from nemotron_style.steps.blocks.model import parallel
from nemotron_style.steps.blocks.model.language_model import build_model
from nemotron_style.steps.blocks.settings.model_config import ModelConfig

SIZES = {
    "num_layers": 2,
    "hidden_size": 48,
    "ffn_hidden_size": 40,
    "num_attention_heads": 8,
    "num_query_groups": 4,
    "vocab_size": 50,
    "max_sequence_length": 64,
    "rope_theta": 5000.0,
    "norm_epsilon": 1e-6,
}
IDS = {"bos_token_id": None, "eos_token_id": 1, "pad_token_id": 1}


@pytest.fixture(autouse=True, scope="module")
def _job() -> None:
    torch.set_num_threads(1)
    parallel.initialize(seed=3)


def sizes(**changes: object) -> ModelConfig:
    return ModelConfig(**{**SIZES, **changes})


def make_model(config: ModelConfig, *, dtype: torch.dtype = torch.float32) -> torch.nn.Module:
    """A model with weights far from their start, so that no two of them are alike."""
    model = build_model(config, dtype=dtype, ddp=False)
    draw = torch.Generator().manual_seed(11)
    with torch.no_grad():
        for weight in model.parameters():
            noise = torch.randn(weight.shape, generator=draw)
            weight.copy_(1 + 0.2 * noise if weight.dim() == 1 else 0.25 * noise)
    return model


def write(model: torch.nn.Module, config: ModelConfig, path: Path, *, limit: int = 1 << 30) -> Path:
    path.mkdir(exist_ok=True)
    write_tensors(path, export_weights(full_weights(model), config), max_bytes=limit)
    dtype = str(next(model.parameters()).dtype).removeprefix("torch.")
    settings = build_settings(config, dtype=dtype, token_ids=IDS)
    (path / "config.json").write_text(json.dumps(settings))
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write(make_model(sizes()), sizes(), tmp_path / "hf")


def change(folder: Path, **values: object) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


# -- bits


@pytest.mark.parametrize("groups", [8, 4, 1], ids=["ratio 1", "ratio 2", "ratio 8"])
@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_every_bit_comes_back(tmp_path, groups, tied, dtype):
    config = sizes(num_query_groups=groups, tie_embeddings=tied)
    model = make_model(config, dtype=dtype)
    folder = write(model, config, tmp_path / "hf")
    assert read_sizes(folder) == config
    tensors = TensorFolder(folder)
    check_tensors(tensors, config)
    assert set(tensors.types.values()) == {dtype}
    back = build_model(config, dtype=dtype, ddp=False, initial=None)
    fill_model(back, import_weights(tensors.read, config))
    assert weights_digest(back) == weights_digest(model)


def test_rows_are_where_their_names_say():
    """Query head h stands in group h // 2, at place h % 2; every row carries its own number."""
    config = sizes()
    fused = torch.arange((8 + 8) * 6, dtype=torch.float32)[:, None].expand(-1, 48)
    name = "decoder.layers.1.self_attention.linear_qkv.weight"
    parts = [part[:, 0] for part in export_tensor(name, fused, config).values()]
    for part, (heads, first) in zip(parts, [(8, None), (4, 2), (4, 3)], strict=True):
        for head in range(heads):
            place = (head // 2) * 4 + head % 2 if first is None else head * 4 + first
            wanted = torch.arange(place * 6, place * 6 + 6, dtype=torch.float32)
            assert torch.equal(part[head * 6 : head * 6 + 6], wanted)


def test_names_and_shapes_are_those_of_transformers():
    transformers = pytest.importorskip("transformers")
    settings = build_settings(sizes(), dtype="float32", token_ids=IDS)
    theirs = transformers.LlamaForCausalLM(transformers.LlamaConfig(**settings))
    found = {name: tuple(one.shape) for name, one in theirs.state_dict().items()}
    assert expected_shapes(sizes()) == found


def test_the_settings_are_read_by_transformers_as_they_are_meant(folder):
    transformers = pytest.importorskip("transformers")
    found = transformers.AutoConfig.from_pretrained(folder)
    assert (found.num_key_value_heads, found.head_dim, found.rms_norm_eps) == (4, 6, 1e-6)
    assert found.max_position_embeddings == 64
    rope = getattr(found, "rope_parameters", None) or {"rope_theta": found.rope_theta}
    assert rope["rope_theta"] == 5000.0
    assert found.eos_token_id == 1
    assert found.bos_token_id is None


def test_what_transformers_saves_is_read(tmp_path):
    """Its own config.json (rope_parameters, dtype) and index, whatever its version."""
    transformers = pytest.importorskip("transformers")
    config = sizes(tie_embeddings=True)
    settings = build_settings(config, dtype="float32", token_ids=IDS)
    theirs = transformers.LlamaForCausalLM(transformers.LlamaConfig(**settings))
    theirs.save_pretrained(tmp_path, max_shard_size="20KB")
    assert (tmp_path / INDEX).is_file()
    assert read_sizes(tmp_path) == config
    tensors = TensorFolder(tmp_path)
    check_tensors(tensors, config)
    model = build_model(config, ddp=False, initial=None)
    fill_model(model, import_weights(tensors.read, config))
    rows = sample_rows(50, rows=2, tokens=20, seed=1)
    assert (model_logits(model, rows) - theirs(input_ids=rows).logits).abs().max() < 1e-5


# -- tensors that do not fit


def refused(read: Callable[[], object]) -> str:
    with pytest.raises(InputError) as caught:
        read()
    return str(caught.value)


def rewrite(folder: Path, edit: Callable[[dict[str, Tensor]], object]) -> TensorFolder:
    tensors = load_file(folder / SINGLE)
    edit(tensors)
    save_file({name: one.contiguous() for name, one in tensors.items()}, folder / SINGLE)
    return TensorFolder(folder)


def test_missing_reshaped_and_unknown_tensors_are_told_at_once(folder):
    def spoil(tensors: dict[str, Tensor]) -> None:
        del tensors["model.layers.1.mlp.up_proj.weight"]
        tensors["model.embed_tokens.weight"] = tensors["model.embed_tokens.weight"][:49]
        tensors["model.layers.0.self_attn.q_proj.bias"] = torch.zeros(48)

    tensors = rewrite(folder, spoil)
    said = refused(lambda: check_tensors(tensors, sizes()))
    assert "model.layers.1.mlp.up_proj.weight: a tensor is missing" in said
    assert "model.embed_tokens.weight: a tensor has another shape" in said
    assert "got [49, 48]; allowed: [50, 48]" in said
    assert "model.layers.0.self_attn.q_proj.bias: this tensor has no place in a Llama" in said


def test_rotary_tables_of_old_checkpoints_are_left_out(folder):
    tensors = rewrite(
        folder,
        lambda all_of: all_of.update(
            {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(3)}
        ),
    )
    check_tensors(tensors, sizes())


@pytest.mark.parametrize("same", [True, False])
def test_a_tied_head_may_stand_twice_but_not_differ(tmp_path, same):
    config = sizes(tie_embeddings=True)
    folder = write(make_model(config), config, tmp_path / "hf")
    tensors = rewrite(
        folder,
        lambda all_of: all_of.update(
            {"lm_head.weight": all_of["model.embed_tokens.weight"] + (0 if same else 1e-3)}
        ),
    )
    if same:
        check_tensors(tensors, config)
        assert "lm_head.weight" not in tensors.shapes
    else:
        assert "lm_head.weight: config.json ties" in refused(lambda: check_tensors(tensors, config))


def test_a_larger_vocabulary_is_filled_up_with_the_mean_row(folder):
    config, larger = sizes(), sizes(vocab_size=56)
    tensors = TensorFolder(folder)
    model = build_model(larger, ddp=False, initial=None)
    fill_model(model, import_weights(tensors.read, config))
    for weight, name in (
        (model.embedding.word_embeddings.weight, "model.embed_tokens.weight"),
        (model.output_layer.weight, "lm_head.weight"),
    ):
        whole = tensors.read(name)
        assert torch.equal(weight[:50], whole)
        torch.testing.assert_close(weight[50:], whole.mean(0).expand(6, -1))
    rows = sample_rows(50, rows=2, tokens=16, seed=0)
    assert compare_logits(model_logits(model, rows), folder, rows).max_logit_difference < 1e-4


# -- logits


@pytest.fixture(params=["transformers", "plain torch"])
def side(request, monkeypatch) -> str:
    """Who computes the other logits."""
    if request.param == "transformers":
        pytest.importorskip("transformers")
    else:
        monkeypatch.setattr(logit_parity.importlib.util, "find_spec", lambda _name: None)
    return request.param


@pytest.mark.parametrize("groups", [8, 4, 1], ids=["ratio 1", "ratio 2", "ratio 8"])
@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_logits_are_those_of_the_files(tmp_path, side, groups, tied):
    config = sizes(num_query_groups=groups, tie_embeddings=tied)
    model = make_model(config)
    folder = write(model, config, tmp_path / "hf")
    rows = sample_rows(config.vocab_size, rows=3, tokens=64, seed=5)
    found = compare_logits(model_logits(model, rows), folder, rows)
    assert found.by.startswith(side)
    assert found.largest > 5
    assert found.max_logit_difference < 1e-4
    found.require(1e-4, where="here")
    assert found.note()["check"] == {"by": found.by, "rows": 3, "tokens": 64}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_is_compared_with_what_it_rounds_to(tmp_path, side, dtype):
    config = sizes()
    model = make_model(config)
    whole = write(model, config, tmp_path / "whole")
    rows = sample_rows(50, rows=2, tokens=32, seed=5)
    exact = model_logits(model, rows)
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(weight.to(dtype))
    rounded = model_logits(model, rows)
    assert (exact - rounded).abs().max() > 1e-3
    assert compare_logits(rounded, whole, rows, dtype=dtype).max_logit_difference < 1e-4
    half = write(model.to(dtype), config, tmp_path / "half")
    assert compare_logits(rounded, half, rows).max_logit_difference < 1e-4


def swap(one: str, other: str) -> Callable[[dict[str, Tensor]], object]:
    def edit(tensors: dict[str, Tensor]) -> None:
        first, second = (f"model.layers.1.{name}.weight" for name in (one, other))
        tensors[first], tensors[second] = tensors[second], tensors[first]

    return edit


def turn_heads(tensors: dict[str, Tensor]) -> None:
    name = "model.layers.0.self_attn.q_proj.weight"
    tensors[name] = tensors[name].roll(6, dims=0)


def turn_pairs(tensors: dict[str, Tensor]) -> None:
    """Rows as a rotary embedding of neighbouring pairs would have them."""
    for part in ("q_proj", "k_proj"):
        name = f"model.layers.0.self_attn.{part}.weight"
        tensors[name] = tensors[name].view(-1, 2, 3, 48).transpose(1, 2).reshape(-1, 48)


MISTAKES = [
    swap("mlp.gate_proj", "mlp.up_proj"),
    swap("self_attn.k_proj", "self_attn.v_proj"),
    swap("input_layernorm", "post_attention_layernorm"),
    turn_heads,
    turn_pairs,
    {"rope_theta": 5050.0},
    {"rms_norm_eps": 1e-5},
]


@pytest.mark.parametrize("mistake", MISTAKES)
def test_the_check_finds_every_mistake(tmp_path, side, mistake):
    model = make_model(sizes())
    with torch.no_grad():  # small states, on which the epsilon of a norm can be seen
        model.embedding.word_embeddings.weight.mul_(0.01)
    folder = write(model, sizes(), tmp_path / "hf")
    rows = sample_rows(50, rows=2, tokens=64, seed=5)
    logits = model_logits(model, rows)
    compare_logits(logits, folder, rows).require(1e-4, where="x")
    change(folder, **mistake) if isinstance(mistake, dict) else rewrite(folder, mistake)
    with pytest.raises(StepFailed, match="max_logit_difference: the converted model computes"):
        compare_logits(logits, folder, rows).require(1e-4, where="x")


def test_transformers_gets_nothing_of_the_file_but_what_a_llama_is(folder):
    """Any of these keys would have it fetch a kernel or a class, make a table, or quantise."""
    pytest.importorskip("transformers")
    rows = sample_rows(50, rows=2, tokens=8, seed=8)
    _, expected = logit_parity.hugging_face_logits(folder, rows)
    change(
        folder,
        attn_implementation="org/kernel",
        experts_implementation="org/kernel",
        auto_map={"AutoModelForCausalLM": "org/model--modeling.Model"},
        quantization_config={"quant_method": "bitsandbytes", "load_in_8bit": True},
        num_labels=10**9,
        per_layer_config={"0": {"hidden_size": 8}},
    )
    by, found = logit_parity.hugging_face_logits(folder, rows)
    assert by.startswith("transformers")
    assert torch.equal(found, expected)


def test_layers_that_are_only_promised_are_not_even_listed(folder):
    said = refused(lambda: check_tensors(TensorFolder(folder), sizes(num_layers=9_999)))
    assert "num_hidden_layers: promises more layers than the weights have tensors" in said
    assert "\n" not in said


def test_both_other_sides_agree(folder):
    pytest.importorskip("transformers")
    rows = sample_rows(50, rows=2, tokens=64, seed=8)
    _, theirs = logit_parity.hugging_face_logits(folder, rows)
    settings = json.loads((folder / "config.json").read_text())
    plain = reference_logits(settings, TensorFolder(folder).read, rows)
    assert (theirs - plain).abs().max() < 1e-4


@pytest.mark.parametrize(
    ("difference", "largest", "passes"),
    [
        (1e-4, 1.0, True),
        (1.1e-4, 1.0, False),
        (1.1e-4, 10.0, False),
        (1.9e-4, 20.0, True),
        (2.1e-4, 20.0, False),
        (float("nan"), 1.0, False),
        (float("inf"), float("nan"), False),
    ],
)
def test_the_limit_grows_with_logits_beyond_ten(difference, largest, passes):
    found = LogitParity("x", 1, 1, difference, largest)
    if passes:
        found.require(1e-4, where="x")
        return
    with pytest.raises(StepFailed):
        found.require(1e-4, where="x")


def test_sample_rows_are_fixed_by_their_seed():
    one, other = (sample_rows(100, rows=4, tokens=30, seed=seed) for seed in (1, 2))
    assert torch.equal(one, sample_rows(100, rows=4, tokens=30, seed=1))
    assert not torch.equal(one, other)
    assert one.min() >= 0
    assert 90 < one.max() < 100


def test_every_tensor_of_every_size_has_its_names():
    """No tensor is lost or told twice, for sizes at random."""
    draw = random.Random(4)
    for _ in range(20):
        groups, queries, half = (draw.choice([1, 2, 3]) for _ in range(3))
        heads = groups * queries
        config = ModelConfig(
            num_layers=draw.randint(1, 12),
            hidden_size=heads * 2 * half,
            ffn_hidden_size=draw.randint(1, 9),
            num_attention_heads=heads,
            num_query_groups=groups,
            vocab_size=draw.randint(1, 9),
            max_sequence_length=8,
            tie_embeddings=draw.random() < 0.5,
        )
        shapes = full_shapes(config)
        weights = {name: torch.randn(shape) for name, shape in shapes.items()}
        parts: dict[str, Tensor] = {}
        for unit in export_weights(weights.items(), config):
            assert not set(unit) & set(parts)
            parts |= unit
        assert sum(one.numel() for one in parts.values()) == sum(
            one.numel() for one in weights.values()
        )
        back = dict(import_weights(parts.__getitem__, config))
        assert all(torch.equal(back[name], whole) for name, whole in weights.items())
