"""judge/card: the tiny judge is as good as its card says; kills cost nothing, bad input is told."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from nemotron_style.runtime.errors import InputError, Interrupted
from nemotron_style.runtime.step.context import StepContext, Stop
from nemotron_style.runtime.store.digest import digest_tree
from nemotron_style.runtime.store.store import Store
from nemotron_style.steps.blocks.checkpoint.hf_config import build_settings
from nemotron_style.steps.blocks.checkpoint.hf_weights import export_weights
from nemotron_style.steps.blocks.checkpoint.model_checkpoint import full_weights
from nemotron_style.steps.blocks.checkpoint.safetensors_folder import write_tensors
from nemotron_style.steps.blocks.data.chat_format import ChatPromptTokens
from nemotron_style.steps.blocks.data.jsonl import read_rows
from nemotron_style.steps.blocks.data.tokenizer_files import export_tokenizer
from nemotron_style.steps.blocks.data.tokenizer_training import train_tokenizer
from nemotron_style.steps.blocks.judge.prompt import ask_messages
from nemotron_style.steps.blocks.model.language_model import build_model
from nemotron_style.steps.blocks.model.parallel import initialize
from nemotron_style.steps.blocks.serving.local_chat_model import load_chat_model
from nemotron_style.steps.blocks.settings.model_config import ModelConfig
from nemotron_style.steps.judge.card.config import Config
from nemotron_style.steps.judge.card.recipe import run
from nemotron_style.steps.judge.card.row import parse_comparison

PAIRS = 10
MANIFESTS = Path(__file__).parents[2] / "manifests"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A judge of random weights, wild enough to say many things, as a Hugging Face folder."""
    initialize(seed=1)
    root = tmp_path_factory.mktemp("judge")
    texts = ["The river is deep and blue.", '{"score_1": 4, "score_2": 2, "ranking": 1}'] * 3
    words = train_tokenizer(texts, 330, root / "tokenizer", tokens=ChatPromptTokens())
    sizes = ModelConfig(
        num_layers=2, hidden_size=32, ffn_hidden_size=64, num_attention_heads=4,
        num_query_groups=2, vocab_size=words.vocab_size, max_sequence_length=160,
    )  # fmt: skip
    model, path = build_model(sizes, ddp=False, initial=0.25), root / "model"
    ids = export_tokenizer(words.path, path)
    write_tensors(path, export_weights(full_weights(model), sizes), max_bytes=1 << 30)
    settings = build_settings(sizes, dtype="float32", token_ids=ids)
    (path / "config.json").write_text(json.dumps(settings))
    for name in ("card.json", "artifact.json"):
        (path / name).write_text("{}")
    return path


def comparison(place: int, **changes: str) -> dict:
    said = {"response_1": f"It is {'deep ' * (place % 3)}blue.", "response_2": "Deep."} | changes
    asked = [{"role": "user", "content": f"Describe river {place}."}]
    answers = [{"role": role, "content": text} for role, text in said.items()]
    return {"messages": asked + answers, "truth": {"score_1": place % 5 + 1, "score_2": 2}}


def context(path: Path, folder: Path, rows: list[dict], **more: object) -> StepContext:
    file = path / "rows.jsonl"
    path.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    inputs = {
        "model": SimpleNamespace(
            path=folder, facts={"weights_digest": "sha256:1", "other": 1}, digest="sha256:2"
        ),
        "comparisons": SimpleNamespace(path=file),
    }
    return StepContext(run_dir=path / "run", inputs=inputs, outputs=("judge",), **more)


def settings(**changes: object) -> Config:
    values = {"sampling": {"max_tokens": 24, "temperature": 1.0}, "pairs_per_checkpoint": 4}
    return Config.model_validate_json(json.dumps(values | changes))


def measure(path: Path, folder: Path, **changes: object) -> StepContext:
    ctx = context(path, folder, [comparison(place) for place in range(PAIRS)])
    run(settings(**changes), ctx)
    return ctx


@pytest.fixture(scope="module")
def measured(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> StepContext:
    torch.set_num_threads(1)
    return measure(tmp_path_factory.mktemp("measured"), folder)


def test_the_judge_goes_on_with_its_card(measured: StepContext, folder: Path) -> None:
    output = measured.output("judge")
    own = {"card.json", "samples.jsonl", "samples.md"}
    assert {file.name for file in output.path.iterdir()} == own | {
        file.name for file in folder.iterdir() if file.name != "artifact.json"
    }
    for file in folder.glob("*.safetensors"):
        assert (output.path / file.name).read_bytes() == file.read_bytes()
    card = json.loads((output.path / "card.json").read_text())
    assert card == output.facts["judge_card"]
    assert card["pairs"] == PAIRS
    assert card["weights_digest"] == output.facts["weights_digest"] == "sha256:1"
    assert (card["form"], card["sampling"]["max_tokens"]) == ("genrm", 24)
    assert "other" not in output.facts
    rows = read_rows(output.path / "samples.jsonl", dict)
    assert len(rows) == 2 * PAIRS
    assert len({row["judgement"] for row in rows}) > PAIRS
    assert measured.figures["parse_rate"] == card["parse_rate"]


def test_a_run_that_stops_ends_with_the_same_bytes(
    folder: Path, tmp_path: Path, measured: StepContext
) -> None:
    rows = [comparison(place) for place in range(PAIRS)]
    with pytest.raises(Interrupted, match="after 4 pairs"):
        run(settings(), context(tmp_path, folder, rows, stop=Stop(requested=True)))
    again = context(tmp_path, folder, rows)
    kept = again.checkpoints.at(1)
    assert kept
    written = (kept.path / "answers.jsonl").stat().st_mtime_ns
    run(settings(), again)
    found = digest_tree(again.output("judge").path)[0]
    assert found == digest_tree(measured.output("judge").path)[0]
    assert (kept.path / "answers.jsonl").stat().st_mtime_ns == written


def test_fewer_pairs_are_drawn_from_the_seed(folder: Path, tmp_path: Path) -> None:
    def asked(name: str, seed: int) -> set[str]:
        made = measure(tmp_path / name, folder, data={"max_pairs": 3}, seed=seed)
        rows = read_rows(made.output("judge").path / "samples.jsonl", dict)
        return {row["messages"][0]["content"] for row in rows}

    first = asked("a", 1)
    assert len(first) == 3
    assert first == asked("b", 1)
    assert any(asked(f"c{seed}", seed) != first for seed in (2, 3))


def test_everything_wrong_with_the_rows_is_told_before_the_judge_is_asked(
    folder: Path, tmp_path: Path
) -> None:
    rows = [comparison(0), comparison(1, response_2="x" * 200), comparison(2) | {"truth": {}}]
    with pytest.raises(InputError) as caught:
        run(settings(), context(tmp_path / "a", folder, rows))
    told = str(caught.value)
    assert "rows.jsonl:2" in told
    assert "no room for the judge's answer" in told
    assert "rows.jsonl:3" in told
    assert "the truth is a score for each response" in told
    equal = comparison(0) | {"truth": {"score_1": 2, "score_2": 2}}
    with pytest.raises(InputError, match="in no pair is one response truly better"):
        run(settings(), context(tmp_path / "b", folder, [equal]))


def test_the_form_instruct_needs_no_roles(folder: Path, tmp_path: Path) -> None:
    """Its question has more tokens than this judge may read, and so the length is told."""
    rows = [comparison(0)]
    with pytest.raises(InputError, match="no room for the judge's answer"):
        run(settings(form="instruct"), context(tmp_path, folder, rows))


def test_transformers_asks_a_judge_in_the_same_words(folder: Path) -> None:
    """What vLLM and transformers render for the roles of a judge is what it was trained on."""
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    ours = load_chat_model(folder)
    question = parse_comparison(comparison(2)).question
    principle = {"role": "principle", "content": "Be true."}
    plain = ask_messages(question, form="genrm")
    for messages in (plain, [plain[0], principle, *plain[1:]]):
        ids = theirs.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)
        assert ids["input_ids"] == ours.encode(messages)


TINY = {
    "toy": """
defaults: {manifests}/data/toy/tiny.yaml
rows: {{train: 96, validation: 96, rated: 96, rated_heldout: 96, comparisons: 8960}}
""",
    "judge": """
defaults: {manifests}/sft/chat/tiny_judge.yaml
inputs: {{data: {{config: {here}/toy.yaml}}}}
trainer: {{sft: {{max_steps: 560}}}}
""",
    "card": """
defaults: {manifests}/judge/card/tiny.yaml
inputs: {{model: {{config: {here}/judge.yaml}}, comparisons: {{config: {here}/toy.yaml}}}}
""",
}
"""The tiny configs with two thirds of the training, and without rows that no judge reads."""


@pytest.mark.slow
def test_the_tiny_judge_is_trained_converted_and_measured(tmp_path: Path) -> None:
    for name, text in TINY.items():
        made = text.format(manifests=MANIFESTS, here=tmp_path)
        (tmp_path / f"{name}.yaml").write_text(made)
    words = ("steps", "run", "judge/card", "-c", f"{tmp_path}/card.yaml", "--json")
    words = (*words, "data.max_pairs=200")
    done = subprocess.run(
        [sys.executable, "-m", "nemotron_style.runtime", *words],
        env=os.environ | {"NEMOTRON_STYLE_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    json.loads(done.stdout)
    [judge] = [one for one in Store(tmp_path).artifacts() if one.kind == "judge_model"]
    card = judge.facts["judge_card"]
    assert card["accuracy"] > 0.9
    assert card["parse_rate"] > 0.98
    assert card["swap_agreement"] > 0.9
    assert card["pairs"] == 200
