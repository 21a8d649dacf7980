"""config.json: the sizes in it, and everything in it that no ModelConfig can hold."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from nemotron_style.runtime.errors import InputError
from nemotron_style.steps.blocks.checkpoint.hf_config import build_settings, read_sizes
from nemotron_style.steps.blocks.settings.model_config import ModelConfig

SIZES = ModelConfig(
    num_layers=2,
    hidden_size=48,
    ffn_hidden_size=40,
    num_attention_heads=8,
    num_query_groups=4,
    vocab_size=50,
    max_sequence_length=64,
    rope_theta=5000.0,
    norm_epsilon=1e-6,
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text(
        json.dumps(build_settings(SIZES, dtype="float32", token_ids={}))
    )
    return tmp_path


def change(folder: Path, **values: object) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


def refused(read: Callable[[], object]) -> str:
    with pytest.raises(InputError) as caught:
        read()
    return str(caught.value)


def test_another_family_is_refused_with_those_there_are_and_the_ways_out(folder):
    change(folder, model_type="mixtral")
    said = refused(lambda: read_sizes(folder))
    assert "allowed: llama, mistral, qwen2, qwen3" in said
    assert "rl/rlhf with backend=nemo_rl takes such a folder" in said
    assert "AutoBridge.import_ckpt('FOLDER', 'NEW_FOLDER')" in said


def test_sizes_come_back(folder):
    assert read_sizes(folder) == SIZES
    change(folder, tie_word_embeddings=True)
    assert read_sizes(folder) == SIZES.model_copy(update={"tie_embeddings": True})


REFUSALS = [
    ("rope_scaling", {"rope_type": "llama3", "factor": 8.0}, "llama3 needs high_freq_factor"),
    ("rope_scaling", {"type": "dynamic", "factor": 2.0}, "rotary positions are scaled by dynamic"),
    ("rope_scaling", {"factor": 2.0}, "scaled by factor, and no type says how"),
    ("rope_scaling", "yarn", "rotary positions are scaled, and no table says how"),
    ("rope_parameters", {"rope_type": "longrope", "factor": 4.0}, "scaled by longrope"),
    ("rope_parameters", {"full_attention": {"rope_theta": 3.0}}, "rotary positions are scaled"),
    ("rope_parameters", {"partial_rotary_factor": 0.5}, "rotary positions on a part of each head"),
    ("partial_rotary_factor", 0.5, "rotary positions on a part of each head"),
    ("attention_bias", True, "biases in attention"),
    ("mlp_bias", True, "biases in the MLP"),
    ("hidden_act", "gelu", "another activation"),
    ("model_type", "mixtral", "another architecture"),
    ("model_type", ["llama"], "another architecture"),
    ("architectures", ["MistralForCausalLM"], "another architecture"),
    ("architectures", ["LlamaForSequenceClassification"], "another architecture"),
    ("sliding_window", 4096, "attention over a window"),
    ("num_local_experts", 8, "a mixture of experts"),
    ("num_experts", 64, "a mixture of experts"),
    ("layer_types", ["sliding_attention"] * 2, "attention over a window in some layers"),
    ("layer_types", [{}], "attention over a window in some layers"),
    ("quantization_config", {"quant_method": "gptq", "bits": 4}, "quantised weights"),
]


@pytest.mark.parametrize(("key", "value", "what"), REFUSALS)
def test_what_cannot_be_represented_is_refused_by_its_key(folder, key, value, what):
    change(folder, **{key: value})
    said = refused(lambda: read_sizes(folder))
    assert said.startswith(f"{folder / 'config.json'}: {key}: ")
    assert what in said
    assert "\n" not in said


def test_all_that_cannot_be_represented_is_told_at_once(folder):
    change(folder, model_type="mixtral", sliding_window=9, num_local_experts=8, hidden_size="48")
    (folder / "adapter_config.json").write_text("{}")
    keys = ("model_type", "num_local_experts")
    said = refused(lambda: read_sizes(folder))
    assert all(f": {key}: " in said for key in keys)
    change(folder, model_type="llama")
    keys = ("sliding_window", "num_local_experts", "hidden_size")
    said = refused(lambda: read_sizes(folder))
    assert all(f": {key}: " in said for key in keys)
    assert "holds an adapter" in said


@pytest.mark.parametrize(
    ("key", "value", "what"),
    [
        ("num_key_value_heads", 3, "no multiple of num_query_groups 3"),
        ("head_dim", 5, "even head size"),
        ("vocab_size", 0, "vocab_size"),
        ("rms_norm_eps", "small", "rms_norm_eps"),
        ("rope_theta", "much", "rope_theta"),
        ("tie_word_embeddings", "yes", "tie_word_embeddings"),
        ("num_hidden_layers", None, "a size is missing"),
    ],
)
def test_sizes_that_make_no_model_are_refused(folder, key, value, what):
    change(folder, **{key: value})
    assert what in refused(lambda: read_sizes(folder))


@pytest.mark.parametrize("text", [None, "", "[]", "{"], ids=repr)
def test_a_folder_without_settings_says_so(folder, text):
    file = folder / "config.json"
    file.unlink() if text is None else file.write_text(text)
    said = refused(lambda: read_sizes(folder))
    assert str(folder) in said


def test_absent_keys_mean_what_they_mean_to_transformers(folder):
    """As they stand in the config of the first Llama."""
    names = ("architectures", "model_type", "hidden_size", "intermediate_size", "vocab_size")
    names += ("num_hidden_layers", "num_attention_heads")
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({name: settings[name] for name in names}))
    found = read_sizes(folder)
    assert (found.num_query_groups, found.max_sequence_length) == (8, 2048)
    assert (found.rope_theta, found.norm_epsilon, found.tie_embeddings) == (10000.0, 1e-6, False)


@pytest.mark.parametrize(
    "rope", [{"rope_parameters": {"rope_type": "default", "rope_theta": 7e5}}, {"rope_theta": 7e5}]
)
def test_the_base_of_rotary_positions_is_found_in_either_place(folder, rope):
    settings = json.loads((folder / "config.json").read_text())
    del settings["rope_theta"]
    (folder / "config.json").write_text(json.dumps(settings | rope))
    assert read_sizes(folder).rope_theta == 7e5


CODE = [
    ("attn_implementation", "org/kernel"),
    ("_attn_implementation", "org/kernel@v1:fn"),
    ("_attn_implementation_internal", "org/kernel"),
    ("attn_implementation", {"": "org/kernel"}),
    ("attn_implementation", "paged|org/kernel"),
    ("experts_implementation", "org/kernel"),
    ("auto_map", {"AutoModelForCausalLM": "org/model--modeling.Model"}),
    ("custom_generate", "org/generate"),
    ("kernel_config", {"kernel_mapping": {"RMSNorm": "org/kernel:Norm"}}),
    ("use_kernels", True),
    ("gguf_file", "model.gguf"),
]


@pytest.mark.parametrize("inside", [False, True], ids=["on top", "inside a table"])
@pytest.mark.parametrize(("key", "value"), CODE)
def test_a_key_that_can_have_code_fetched_is_refused(folder, key, value, inside):
    change(folder, **({"text_config": [{key: value}]} if inside else {key: value}))
    said = refused(lambda: read_sizes(folder))
    assert f": text_config[0].{key}: " in said if inside else f": {key}: " in said
    assert "can have code fetched or run" in said


@pytest.mark.parametrize(
    "settings",
    [{"attn_implementation": "sdpa"}, {"_attn_implementation_autoset": True}, {"auto_map": None}],
)
def test_kernels_that_are_built_in_may_be_named(folder, settings):
    change(folder, **settings)
    assert read_sizes(folder) == SIZES


def test_code_beside_the_weights_is_refused(folder):
    (folder / "custom_generate").mkdir()
    assert "the folder holds code" in refused(lambda: read_sizes(folder))


@pytest.mark.parametrize(
    ("key", "value", "what"),
    [
        ("num_hidden_layers", 10**6, "num_hidden_layers"),
        ("hidden_size", 10**12, "hidden_size"),
        ("vocab_size", 10**300, "vocab_size"),
        ("max_position_embeddings", 10**12, "max_position_embeddings"),
        ("num_attention_heads", 0, "num_attention_heads"),
        ("head_dim", "wide", "heads are of no width"),
        ("head_dim", [6], "heads are of no width"),
    ],
)
def test_numbers_that_no_model_has_are_refused_by_their_key(folder, key, value, what):
    change(folder, **{key: value})
    assert what in refused(lambda: read_sizes(folder))


def test_a_file_that_is_nested_without_end_is_refused(folder):
    (folder / "config.json").write_text("[" * 100_000)
    assert "is not JSON" in refused(lambda: read_sizes(folder))
