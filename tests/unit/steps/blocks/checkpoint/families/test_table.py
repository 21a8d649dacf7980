"""Every family there and back: the logits of transformers, the same bits, the same config."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from torch import Tensor, nn

from family_models import SIZES, TOKEN_IDS, VARIANTS, write_model
from nemotron_style.runtime.errors import InputError
from nemotron_style.steps.blocks.checkpoint.families.table import (
    BY_ARCHITECTURE,
    BY_MODEL_TYPE,
    FAMILIES,
)
from nemotron_style.steps.blocks.checkpoint.hf_config import (
    build_settings,
    parse_sizes,
    read_settings,
    read_sizes,
)
from nemotron_style.steps.blocks.checkpoint.hf_weights import (
    check_tensors,
    export_weights,
    fill_model,
    import_weights,
)
from nemotron_style.steps.blocks.checkpoint.logit_parity import hugging_face_logits, model_logits
from nemotron_style.steps.blocks.checkpoint.model_checkpoint import full_weights
from nemotron_style.steps.blocks.checkpoint.reference_model import reference_logits
from nemotron_style.steps.blocks.checkpoint.safetensors_folder import TensorFolder, write_tensors
from nemotron_style.steps.blocks.generation.engine import Engine
from nemotron_style.steps.blocks.generation.logprob_gap import measure_sample_gap
from nemotron_style.steps.blocks.generation.sampling_params import SamplingParams
from nemotron_style.steps.blocks.model import parallel
from nemotron_style.steps.blocks.model.language_model import build_model
from nemotron_style.steps.blocks.settings.model_config import Architecture, ModelConfig

transformers = pytest.importorskip("transformers")
ROWS = torch.randint(3, 64, (2, 40), generator=torch.Generator().manual_seed(1))
LIMIT = 1e-5


@dataclass(frozen=True)
class Case:
    """A model that transformers wrote, and the same one imported."""

    folder: Path
    logits: Tensor
    sizes: ModelConfig
    tensors: TensorFolder
    model: nn.Module


@pytest.fixture(scope="module", params=VARIANTS)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    torch.set_num_threads(1)
    parallel.initialize(seed=3)
    folder = tmp_path_factory.mktemp("hf")
    logits = write_model(request.param, folder, ROWS)
    sizes, tensors = read_sizes(folder), TensorFolder(folder)
    check_tensors(tensors, sizes)
    model = build_model(sizes, ddp=False, initial=None)
    fill_model(model, import_weights(tensors.read, sizes))
    return Case(folder, logits, sizes, tensors, model)


def difference(one: Tensor, other: Tensor) -> float:
    return float((one - other).abs().max())


def test_an_imported_model_computes_what_transformers_does(case: Case) -> None:
    assert difference(model_logits(case.model, ROWS), case.logits) < LIMIT


def test_an_exported_model_is_the_same_model_to_transformers(case: Case, tmp_path: Path) -> None:
    settings = build_settings(case.sizes, dtype="float32", token_ids=TOKEN_IDS)
    (tmp_path / "config.json").write_text(json.dumps(settings))
    units = export_weights(full_weights(case.model), case.sizes)
    write_tensors(tmp_path, units, max_bytes=10**9)
    assert read_sizes(tmp_path) == case.sizes
    written = TensorFolder(tmp_path)
    assert written.shapes == case.tensors.shapes
    assert all(torch.equal(written.read(key), case.tensors.read(key)) for key in written.shapes)
    loaded = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path, attn_implementation="eager", dtype=torch.float32
    )
    before = read_settings(case.folder)["architectures"]
    assert [type(loaded).__name__] == settings["architectures"] == before
    with torch.inference_mode():
        assert difference(loaded(input_ids=ROWS).logits, case.logits) < LIMIT
    by, found = hugging_face_logits(tmp_path, ROWS)
    assert by.startswith("transformers")
    assert difference(found, case.logits) < LIMIT


def test_plain_torch_reads_the_files_as_transformers_does(case: Case) -> None:
    settings = read_settings(case.folder)
    found = reference_logits(settings, case.tensors.read, ROWS)
    assert difference(found, case.logits) < LIMIT


def test_sampling_in_process_says_what_transformers_says(case: Case) -> None:
    """Greedily and beside prompts of other lengths, with the log-probs that training computes."""
    prompts = [ROWS[0, :9].tolist(), ROWS[1, :4].tolist(), ROWS[1, 20:29].tolist()]
    engine = Engine(case.model, case.sizes)
    greedy = SamplingParams(max_new_tokens=16, temperature=0.0)
    drawn = engine.generate(prompts, greedy, seed=1)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        case.folder, attn_implementation="eager", dtype=torch.float32
    )
    options = {"do_sample": False, "max_new_tokens": 16, "min_new_tokens": 16, "eos_token_id": None}
    options |= {"return_dict_in_generate": True, "output_logits": True}
    for prompt, [sample] in zip(prompts[:2], drawn, strict=False):
        given = torch.tensor([prompt])
        found = model.generate(given, attention_mask=torch.ones_like(given), **options)
        assert found.sequences[0, len(prompt) :].tolist() == sample.tokens
        logprobs = torch.cat(found.logits).log_softmax(-1)
        wanted = logprobs.gather(1, torch.tensor(sample.tokens)[:, None])[:, 0]
        assert sample.log_probs == pytest.approx(wanted.tolist(), abs=1e-5)
    gap = measure_sample_gap(case.model, prompts, drawn)
    assert gap.max_log_prob_difference < 1e-5


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.architecture)
def test_absent_keys_mean_what_they_mean_to_transformers(family: Any, tmp_path: Path) -> None:
    """The sizes alone, and all that transformers' config makes of them, are one model."""
    needed = ("vocab_size", "hidden_size", "intermediate_size")
    needed += ("num_hidden_layers", "num_attention_heads")
    # as many heads as the largest default of key heads; no tokens outside the vocabulary
    few = {key: SIZES[key] for key in needed} | {"num_attention_heads": 32, "hidden_size": 256}
    config = getattr(transformers, family.config_class)(**few, **TOKEN_IDS)
    whole = json.loads(config.to_json_string(use_diff=False))
    few["model_type"] = family.model_type
    assert parse_sizes(few, tmp_path) == parse_sizes(whole, tmp_path)


def test_the_table_has_every_architecture_once() -> None:
    assert set(BY_ARCHITECTURE) == set(get_args(Architecture))
    assert len(BY_ARCHITECTURE) == len(BY_MODEL_TYPE) == len(FAMILIES)


SIZES_OF_A_MODEL: dict[str, Any] = {
    "num_layers": 2,
    "hidden_size": 32,
    "ffn_hidden_size": 48,
    "num_attention_heads": 4,
    "num_query_groups": 2,
    "vocab_size": 64,
    "max_sequence_length": 64,
}


@pytest.mark.parametrize(
    ("switches", "keys", "fix"),
    [
        ({"qkv_bias": True}, {"qkv_bias"}, "it is a model of qwen2: name that"),
        (
            {"qkv_bias": True, "logit_softcap": 30.0},
            {"qkv_bias", "logit_softcap"},
            "no family has all switches of this model",
        ),
        ({"architecture": "gemma3"}, {"activation", "zero_centered_gamma"}, "a model of llama,"),
    ],
)
def test_a_switch_that_the_family_cannot_say_is_refused_when_it_is_written(
    switches: dict[str, Any], keys: set[str], fix: str
) -> None:
    sizes = ModelConfig.model_validate({**SIZES_OF_A_MODEL, **switches})
    with pytest.raises(InputError) as caught:
        build_settings(sizes, dtype="float32", token_ids={})
    assert keys <= {problem.key for problem in caught.value.problems}
    assert "has no key for this switch" in str(caught.value)
    assert fix in str(caught.value)
