"""A real model, SmolLM2 with 135 million weights: from a file of somebody else's and back.

Where the fixture ``smollm2`` finds it is written there.
"""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from nemotron_style.runtime.step.context import StepContext
from nemotron_style.steps.blocks.checkpoint.model_checkpoint import TOKENIZER, load_model
from nemotron_style.steps.blocks.checkpoint.safetensors_folder import TensorFolder
from nemotron_style.steps.blocks.data.chat.opening import open_chat
from nemotron_style.steps.blocks.data.tokenizer import Tokenizer
from nemotron_style.steps.blocks.generation.engine import Engine
from nemotron_style.steps.blocks.generation.sampling_params import SamplingParams
from nemotron_style.steps.blocks.model.parallel import initialize
from nemotron_style.steps.blocks.serving.completion import CompletionTask
from nemotron_style.steps.blocks.serving.local_chat_model import load_chat_model
from nemotron_style.steps.convert.hf_to_megatron import config as import_config
from nemotron_style.steps.convert.hf_to_megatron import recipe as import_recipe
from nemotron_style.steps.convert.megatron_to_hf import config as export_config
from nemotron_style.steps.convert.megatron_to_hf import recipe as export_recipe

pytestmark = pytest.mark.slow

TOKENS = {
    "system_turn_start": "<repo_name>",
    "turn_start": "<|im_start|>",
    "label_start": "<file_sep>",
}


def convert(recipe: Any, settings: Any, path: Path, run_dir: Path, **values: Any) -> Any:
    inputs = {"model": SimpleNamespace(path=path, facts={})}
    ctx = StepContext(run_dir=run_dir, inputs=inputs, outputs=("model",))
    recipe.run(settings.Config.model_validate_json(json.dumps(values)), ctx)
    return ctx.output("model")


@pytest.fixture(scope="module")
def brought(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    torch.set_num_threads(1)
    return convert(import_recipe, import_config, smollm2, tmp_path_factory.mktemp("brought"))


def test_its_logits_are_those_of_transformers(brought: Any) -> None:
    assert brought.facts["parameters"] == 134_515_008
    assert brought.facts["check"]["by"].startswith("transformers")
    assert brought.facts["largest_logit"] > 20
    assert brought.facts["max_logit_difference"] < 1e-4


def test_the_way_back_gives_the_same_bits_and_words(
    smollm2: Path, brought: Any, tmp_path: Path
) -> None:
    values = {"max_shard_gigabytes": 0.2}
    again = convert(export_recipe, export_config, brought.path, tmp_path, **values)
    assert again.facts["weights_digest"] == brought.facts["weights_digest"]
    before, after = TensorFolder(smollm2), TensorFolder(again.path)
    assert before.types == after.types
    assert all(torch.equal(before.read(name), after.read(name)) for name in before.shapes)
    names = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
    for name in names:
        assert (smollm2 / name).read_bytes() == (again.path / name).read_bytes()


def test_it_says_the_same_64_tokens(smollm2: Path, brought: Any) -> None:
    import transformers

    initialize(seed=1)
    words = transformers.AutoTokenizer.from_pretrained(smollm2)
    asked = [{"role": "user", "content": "Why is the sky blue?"}]
    given = words.apply_chat_template(
        asked, add_generation_prompt=True, return_dict=True, return_tensors="pt"
    )
    theirs = transformers.AutoModelForCausalLM.from_pretrained(smollm2)
    theirs.generation_config.eos_token_id = None
    found = theirs.generate(**given, do_sample=False, max_new_tokens=64)
    prompt = given["input_ids"][0].tolist()
    model, sizes = load_model(brought.path, ddp=False)
    greedy = SamplingParams(max_new_tokens=64, temperature=0.0)
    [[ours]] = Engine(model, sizes).generate([prompt], greedy, seed=0)
    text = Tokenizer(brought.path / TOKENIZER).decode(ours.tokens)
    assert len(ours.tokens) == 64
    assert found[0, len(prompt) :].tolist() == ours.tokens
    assert "light" in text


def test_its_special_tokens_serve_to_chat(smollm2: Path, tmp_path: Path) -> None:
    values = {"model": {"data": {"chat_prompt_tokens": TOKENS}}, "dtype": "bfloat16"}
    half = convert(import_recipe, import_config, smollm2, tmp_path, **values)
    assert half.facts["dtype"] == "bfloat16"
    assert half.facts["max_logit_difference"] < 1e-4
    chat = open_chat(Tokenizer(half.path / TOKENIZER)).texts
    assert chat.tokens.model_dump() == {**TOKENS, "end_of_turn": "\n", "end_of_name": "\n"}


def test_it_is_served_with_its_own_template(smollm2: Path) -> None:
    """The prompt and the answer of transformers, which ends with one of the model's own tokens."""
    import transformers

    initialize(seed=1)
    words = transformers.AutoTokenizer.from_pretrained(smollm2)
    asked = [{"role": "user", "content": "What is the capital of France? Answer with one word."}]
    given = words.apply_chat_template(
        asked, add_generation_prompt=True, return_dict=True, return_tensors="pt"
    )
    theirs = transformers.AutoModelForCausalLM.from_pretrained(smollm2)
    found = theirs.generate(**given, do_sample=False, max_new_tokens=48)
    model = load_chat_model(smollm2)
    prompt = model.encode(asked)
    assert prompt == given["input_ids"][0].tolist()
    [[choice]] = model.complete([CompletionTask(prompt, 48, temperature=0.0)])
    said = words.decode(found[0, len(prompt) :], skip_special_tokens=True)
    assert (choice.text, choice.finish) == (said, "stop")
    assert "Paris" in choice.text
    asked[0]["content"] += "<|im_end|>"
    controls = model.template.controls
    kept = [[one for one in ids if one in controls] for ids in (prompt, model.encode(asked))]
    assert kept[0] == kept[1]  # the end of a turn in a message ends none
