"""A chat model to Hugging Face and back: its bits, its words, its answers, and what is refused."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from division_job import divide_checkpoint
from nemotron_style.runtime.errors import InputError, Interrupted, StepFailed
from nemotron_style.runtime.step.context import StepContext, Stop
from nemotron_style.steps.blocks.checkpoint import logit_parity
from nemotron_style.steps.blocks.checkpoint.model_checkpoint import (
    TOKENIZER,
    load_model,
    read_config,
    save_model,
    weights_digest,
)
from nemotron_style.steps.blocks.data.chat.opening import open_chat, tokenizer_facts
from nemotron_style.steps.blocks.data.conversation import parse_messages
from nemotron_style.steps.blocks.data.tokenizer import Tokenizer
from nemotron_style.steps.blocks.generation.engine import Engine
from nemotron_style.steps.blocks.generation.sampling_params import SamplingParams
from nemotron_style.steps.blocks.model.language_model import build_model
from nemotron_style.steps.blocks.model.parallel import Parallel, initialize
from nemotron_style.steps.convert.hf_to_megatron import config as import_config
from nemotron_style.steps.convert.hf_to_megatron import recipe as import_recipe
from nemotron_style.steps.convert.megatron_to_hf import config as export_config
from nemotron_style.steps.convert.megatron_to_hf import recipe as export_recipe
from ranks import run_ranks

MESSAGES = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Describe the river now."},
    {"role": "assistant", "content": "The river is deep."},
    {"role": "user", "content": "And é ☂ {{ x }}?\n twice"},
]
LABEL = "helpfulness:4,verbosity:1"


def convert(recipe: Any, settings: Any, path: Path, run_dir: Path, **values: Any) -> StepContext:
    stop = values.pop("stop", Stop())
    inputs = {"model": SimpleNamespace(path=path, facts={})}
    ctx = StepContext(run_dir=run_dir, inputs=inputs, outputs=("model",), stop=stop)
    recipe.run(settings.Config.model_validate_json(json.dumps(values)), ctx)
    return ctx


def export(path: Path, run_dir: Path, **values: Any) -> StepContext:
    return convert(export_recipe, export_config, path, run_dir, **values)


def bring(path: Path, run_dir: Path, **values: Any) -> StepContext:
    return convert(import_recipe, import_config, path, run_dir, **values)


def contents(path: Path) -> dict[str, bytes]:
    return {one.name: one.read_bytes() for one in sorted(path.iterdir())}


@pytest.fixture
def start(small_toy: Any) -> Path:
    initialize(seed=1)
    return small_toy.model.path


@pytest.fixture
def exported(start: Path, tmp_path: Path) -> StepContext:
    return export(start, tmp_path / "export")


@pytest.fixture
def folder(exported: StepContext) -> Path:
    return exported.output("model").path


@pytest.fixture
def foreign(folder: Path, tmp_path: Path) -> Path:
    """The same model as somebody else would publish it: another template, no chat tokens."""
    copy = tmp_path / "foreign"
    shutil.copytree(folder, copy)
    file = copy / "tokenizer_config.json"
    settings = json.loads(file.read_text())
    del settings["chat_prompt_tokens"]
    file.write_text(json.dumps(settings))
    (copy / "chat_template.jinja").write_text("{{ messages[0].content }}")
    return copy


# -- what transformers makes of it


@pytest.fixture
def theirs(folder: Path) -> tuple[Any, Any]:
    transformers = pytest.importorskip("transformers")
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    return model, transformers.AutoTokenizer.from_pretrained(folder)


def test_logits_are_equal_and_recorded(exported: StepContext) -> None:
    facts = exported.output("model").facts
    assert facts["max_logit_difference"] < 1e-4
    assert facts["largest_logit"] > 5
    assert exported.figures["max_logit_difference"] == facts["max_logit_difference"]
    assert exported.figures["checked_by"] == facts["check"]["by"]


def test_the_same_64_tokens_are_generated(start: Path, theirs: tuple[Any, Any]) -> None:
    other, words = theirs
    model, sizes = load_model(start, ddp=False)
    engine = Engine(model, sizes)
    prompts = [f"Describe the {noun} now." for noun in ("river", "lake", "oven")]
    for prompt in prompts:
        asked = [{"role": "user", "content": prompt}]
        given = words.apply_chat_template(
            asked, add_generation_prompt=True, return_dict=True, return_tensors="pt"
        )
        ids = given["input_ids"]
        greedy = SamplingParams(max_new_tokens=64, temperature=0.0)
        [[ours]] = engine.generate([ids[0].tolist()], greedy, seed=0)
        other.generation_config.eos_token_id = None
        found = other.generate(**given, do_sample=False, max_new_tokens=64)
        assert len(ours.tokens) == 64
        assert found[0, ids.shape[1] :].tolist() == ours.tokens


def test_an_answer_ends_where_it_ends_here(start: Path, theirs: tuple[Any, Any]) -> None:
    other, words = theirs
    tokenizer = Tokenizer(start / TOKENIZER)
    chat = open_chat(tokenizer)
    [stop] = chat.stop_ids
    assert words.eos_token_id == other.generation_config.eos_token_id == stop
    prompt = chat.prompt_ids(parse_messages(MESSAGES[1:2]))
    found = other.generate(torch.tensor([prompt]), do_sample=False, max_new_tokens=64)[0]
    assert found[-1] == stop
    assert len(found) < len(prompt) + 64


@pytest.mark.parametrize("label", [None, LABEL])
def test_the_template_renders_what_the_steps_write(
    start: Path, theirs: tuple[Any, Any], label: str | None
) -> None:
    words = theirs[1]
    tokenizer = Tokenizer(start / TOKENIZER)
    chat = open_chat(tokenizer).texts
    text = chat.prompt(parse_messages(MESSAGES), label=label)
    more = {"label": label} if label else {}
    options = {"add_generation_prompt": True, **more}
    assert words.apply_chat_template(MESSAGES, tokenize=False, **options) == text
    ids = words.apply_chat_template(MESSAGES, return_dict=True, **options)["input_ids"]
    assert ids == tokenizer.encode(text, control=True)


def test_roles_of_tokens_are_told(folder: Path, theirs: tuple[Any, Any]) -> None:
    special = json.loads((folder / "special_tokens_map.json").read_text())
    assert special == {"eos_token": "<extra_id_1>", "pad_token": "<extra_id_1>"}
    assert theirs[1].pad_token == "<extra_id_1>"
    assert theirs[0].config.pad_token_id == theirs[1].pad_token_id


# -- there and back


def test_the_way_back_gives_the_same_checkpoint(
    start: Path, exported: StepContext, tmp_path: Path
) -> None:
    back = bring(exported.output("model").path, tmp_path / "back").output("model")
    digest = weights_digest(start)
    assert weights_digest(back.path) == digest
    assert back.facts["weights_digest"] == exported.output("model").facts["weights_digest"]
    assert back.facts["weights_digest"] == digest
    assert read_config(back.path) == read_config(start)
    before, after = contents(start / TOKENIZER), contents(back.path / TOKENIZER)
    assert before == {name: after[name] for name in before}
    tokenizer = Tokenizer(start / TOKENIZER)
    told = tokenizer_facts(tokenizer, open_chat(tokenizer))
    assert {name: back.facts[name] for name in told} == told
    assert {name: exported.output("model").facts[name] for name in told} == told


def test_shards_come_back_too(start: Path, tmp_path: Path) -> None:
    many = export(start, tmp_path / "export", max_shard_gigabytes=5e-5)
    assert many.figures["files"] > 2
    back = bring(many.output("model").path, tmp_path / "back")
    assert back.output("model").facts["weights_digest"] == weights_digest(start)


def test_bfloat16_keeps_its_bits_and_float32_is_rounded_on_demand(
    start: Path, tmp_path: Path
) -> None:
    half = export(start, tmp_path / "half", dtype="bfloat16").output("model")
    assert half.facts["dtype"] == "bfloat16"
    assert "weights_digest" not in half.facts
    assert half.facts["max_logit_difference"] < 1e-4
    kept = bring(half.path, tmp_path / "kept").output("model")
    assert kept.facts["dtype"] == "bfloat16"
    again = export(kept.path, tmp_path / "again").output("model")
    assert contents(again.path) == contents(half.path)
    assert again.facts["weights_digest"] == kept.facts["weights_digest"]
    wide = bring(half.path, tmp_path / "wide", dtype="float32").output("model")
    assert wide.facts["dtype"] == "float32"
    model, _ = load_model(kept.path, ddp=False)  # as a training step in float32 reads it
    assert weights_digest(model) == weights_digest(wide.path)
    tight = export(wide.path, tmp_path / "tight", dtype="bfloat16").output("model")
    assert contents(tight.path) == contents(half.path)


@pytest.mark.slow
@pytest.mark.xdist_group("ranks")
@pytest.mark.parametrize("division", ["tensor", "pipeline"])
def test_a_divided_checkpoint_gives_the_same_bytes(
    start: Path, folder: Path, tmp_path: Path, division: str
) -> None:
    divided = tmp_path / "divided"
    run_ranks(divide_checkpoint, start, divided, Parallel(**{division: 2}), log=tmp_path / "log")
    assert len(list((divided / "weights").glob("*.distcp"))) == 2
    found = export(divided, tmp_path / "again").output("model").path
    assert contents(found) == contents(folder)


# -- a vocabulary that is larger than its tokenizer


@pytest.fixture
def padded(start: Path, tmp_path: Path) -> Path:
    sizes = read_config(start)
    sizes = sizes.model_copy(update={"vocab_size": sizes.vocab_size + 24})
    path = tmp_path / "padded"
    save_model(build_model(sizes), path, config=sizes, tokenizer=start / TOKENIZER)
    return path


def test_padding_of_the_vocabulary_stays_or_is_cut(padded: Path, tmp_path: Path) -> None:
    known = Tokenizer(padded / TOKENIZER).vocab_size
    whole = export(padded, tmp_path / "whole").output("model")
    assert json.loads((whole.path / "config.json").read_text())["vocab_size"] == known + 24
    cut = export(padded, tmp_path / "cut", vocab_size=known).output("model")
    assert "weights_digest" not in cut.facts
    before, after = (load_file(one.path / "model.safetensors") for one in (whole, cut))
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        assert torch.equal(before[name][:known], after[name])
    back = bring(cut.path, tmp_path / "back", model={"make_vocab_size_divisible_by": 64})
    sizes = read_config(back.output("model").path)
    assert sizes.vocab_size % 64 == 0
    assert 0 <= sizes.vocab_size - known < 64


@pytest.mark.parametrize("more", [-1, 25])
def test_the_vocabulary_is_not_cut_elsewhere(padded: Path, tmp_path: Path, more: int) -> None:
    known = Tokenizer(padded / TOKENIZER).vocab_size
    with pytest.raises(InputError, match=rf"vocab_size: .*allowed: {known} to {known + 24}"):
        export(padded, tmp_path / "cut", vocab_size=known + more)


def test_ids_without_a_row_are_refused_or_given_rows(folder: Path, tmp_path: Path) -> None:
    """As where somebody added a token and did not resize the embeddings."""
    file = folder / "tokenizer.json"
    told = json.loads(file.read_text())
    known = Tokenizer(folder).vocab_size
    told["added_tokens"].append({**told["added_tokens"][0], "id": known, "content": "<more>"})
    file.write_text(json.dumps(told))
    with pytest.raises(InputError, match=rf"vocab_size: .*at least {known + 1}"):
        bring(folder, tmp_path / "refused")
    wide = bring(folder, tmp_path / "wide", model={"make_vocab_size_divisible_by": 128})
    assert read_config(wide.output("model").path).vocab_size > known


# -- models from elsewhere


def test_a_foreign_tokenizer_is_carried_as_it_is(foreign: Path, tmp_path: Path) -> None:
    back = bring(foreign, tmp_path / "back").output("model")
    carried = contents(back.path / TOKENIZER)
    assert all(carried[name] == (foreign / name).read_bytes() for name in carried)
    assert back.facts["canary"]["ids"] == Tokenizer(foreign).encode(back.facts["canary"]["text"])
    assert back.facts["template_digest"].startswith("sha256:")
    again = export(back.path, tmp_path / "again").output("model")
    assert contents(again.path) == contents(foreign)


def test_a_foreign_model_learns_how_it_will_be_spoken_to(foreign: Path, tmp_path: Path) -> None:
    tokens = {
        "system_turn_start": "<extra_id_2>",
        "turn_start": "<extra_id_0>",
        "label_start": "<extra_id_1>",
    }
    back = bring(foreign, tmp_path / "back", model={"data": {"chat_prompt_tokens": tokens}})
    output = back.output("model")
    tokenizer = Tokenizer(output.path / TOKENIZER)
    chat = open_chat(tokenizer)
    assert chat.texts.tokens.turn_start == "<extra_id_0>"
    assert (tokenizer.path / "chat_template.jinja").read_text() == chat.template()
    assert output.facts["canary"] == tokenizer_facts(tokenizer, chat)["canary"]


def test_tokens_that_are_no_ids_or_contradict_are_refused(
    folder: Path, foreign: Path, tmp_path: Path
) -> None:
    names = ("system_turn_start", "turn_start", "label_start")
    model = {"data": {"chat_prompt_tokens": dict(zip(names, ("<a>", "<b>", "<c>"), strict=True))}}
    with pytest.raises(InputError, match="must be one id of the tokenizer"):
        bring(foreign, tmp_path / "one", model=model)
    with pytest.raises(InputError, match="was trained with other tokens"):
        bring(folder, tmp_path / "two", model=model)


def test_weights_of_several_types_need_a_type(folder: Path, tmp_path: Path) -> None:
    file = folder / "model.safetensors"
    tensors = load_file(file)
    tensors["model.norm.weight"] = tensors["model.norm.weight"].bfloat16()
    save_file(tensors, file)
    with pytest.raises(InputError, match=r"dtype: the weights are of several types.*bfloat16"):
        bring(folder, tmp_path / "refused")
    found = bring(folder, tmp_path / "wide", dtype="float32").output("model")
    assert found.facts["dtype"] == "float32"


def test_everything_wrong_with_a_folder_is_told_at_once(folder: Path, tmp_path: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config |= {"rope_scaling": {"rope_type": "longrope", "factor": 4.0}, "attention_bias": True}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").unlink()
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(InputError) as caught:
        bring(folder, tmp_path / "back")
    told = [(Path(one.where).name, one.key) for one in caught.value.problems]
    assert told == [
        ("config.json", "attention_bias"),
        ("config.json", "rope_scaling"),
        ("pytorch_model.bin", ""),
        (folder.name, "tokenizer.json"),
    ]
    assert not any((tmp_path / "back" / "staging" / "1" / "model").iterdir())


# -- the check


def test_a_difference_above_the_limit_fails_the_step(start: Path, tmp_path: Path) -> None:
    with pytest.raises(StepFailed, match=r"max_logit_difference: .*allowed: 0"):
        export(start, tmp_path / "export", max_logit_difference=0.0)


def test_a_wrong_mapping_fails_the_step(
    start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Up and gate exchanged, both ways, as a conversion that only checks itself would pass."""
    right = export_recipe.export_weights

    def wrong(*args: Any) -> Any:
        for unit in right(*args):
            keys = list(unit)
            gated = any("gate_proj" in key for key in keys)
            yield dict(zip(reversed(keys), unit.values(), strict=True)) if gated else unit

    monkeypatch.setattr(export_recipe, "export_weights", wrong)
    with pytest.raises(StepFailed, match="computes something else"):
        export(start, tmp_path / "export")


def test_without_transformers_the_check_is_made_all_the_same(
    start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logit_parity.importlib.util, "find_spec", lambda _name: None)
    there = export(start, tmp_path / "export")
    back = bring(there.output("model").path, tmp_path / "back")
    for ctx in (there, back):
        assert ctx.output("model").facts["check"]["by"] == "plain torch"
        assert ctx.figures["max_logit_difference"] < 1e-4


def test_a_conversion_that_is_asked_to_stop_stops(
    start: Path, folder: Path, tmp_path: Path
) -> None:
    for way, path in ((export, start), (bring, folder)):
        with pytest.raises(Interrupted, match="starts the conversion again"):
            way(path, tmp_path / way.__name__, stop=Stop(requested=True))


def test_weights_that_are_damaged_or_not_finite_are_refused(folder: Path, tmp_path: Path) -> None:
    file = folder / "model.safetensors"
    tensors, whole = load_file(file), file.read_bytes()
    tensors["model.layers.0.mlp.up_proj.weight"][3, 1] = torch.nan
    save_file(tensors, file)
    said = r"model\.layers\.0\.mlp\.up_proj\.weight: tensors hold numbers that are not finite"
    with pytest.raises(InputError, match=said):
        bring(folder, tmp_path / "not finite")
    file.write_bytes(whole[:-100])
    with pytest.raises(InputError, match="is no safetensors file"):
        bring(folder, tmp_path / "cut off")
    assert not list((tmp_path / "cut off").rglob("weights"))


# -- planned by itself


@pytest.fixture
def project(start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A project whose store holds the toy's model, and its command line."""
    (tmp_path / "project").mkdir()
    (tmp_path / "project" / "env.toml").write_text("")
    monkeypatch.chdir(tmp_path / "project")
    monkeypatch.delenv("NEMOTRON_STYLE_HOME", raising=False)

    def command(*words: str) -> str:
        code = "import sys; from nemotron_style.runtime.cli import main; sys.exit(main())"
        done = subprocess.run(
            [sys.executable, "-c", code, *words],
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    command("artifacts", "adopt", str(start), "--kind", "checkpoint_megatron", "--name", "start")
    return command


def test_both_conversions_are_planned_where_they_are_needed(project: Any, folder: Path) -> None:
    """A step that wants Hugging Face's kind gets it made of ours, and the other way round."""
    document = json.loads(
        project("steps", "run", "convert/hf_to_megatron", "-i", "model=start", "-d", "--json")
    )
    steps = ["convert/megatron_to_hf", "convert/hf_to_megatron"]
    assert [run["plan"]["step"] for run in document["runs"]] == steps
    first, second = (run["plan"] for run in document["runs"])
    assert second["inputs"][0]["source"] == f"run:{first['run_id']}/model"
    project("artifacts", "adopt", str(folder), "--kind", "checkpoint_hf", "--name", "theirs")
    words = ("sft/chat", "-c", "tiny", "-i", "model=theirs", "model.architecture=null")
    document = json.loads(project("steps", "run", *words, "-d", "--json"))
    steps = ["convert/hf_to_megatron", "data/toy", "sft/chat"]
    assert [run["plan"]["step"] for run in document["runs"]] == steps


@pytest.mark.slow
def test_the_command_line_goes_there_and_back(project: Any, start: Path) -> None:
    words = ("convert/hf_to_megatron", "-i", "model=start", "--name", "back", "--json")
    document = json.loads(project("steps", "run", *words))
    assert [run["step"] for run in document["runs"]] == [
        "convert/megatron_to_hf",
        "convert/hf_to_megatron",
    ]
    record = json.loads(project("artifacts", "show", "back", "--json"))
    facts = record.get("record", record)["facts"]
    assert facts["weights_digest"] == weights_digest(start)
    lineage = project("artifacts", "lineage", "back")
    assert "made by convert/megatron_to_hf@default" in lineage
    assert "start:v1" in lineage
