"""A reward model from its files: what transformers computes, whatever stands beside a row."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from card import CARD, card
from nemotron_style.runtime.errors import InputError
from nemotron_style.steps.blocks.checkpoint.model_checkpoint import save_model
from nemotron_style.steps.blocks.data.chat_format import ChatPromptTokens
from nemotron_style.steps.blocks.data.tokenizer_training import train_tokenizer
from nemotron_style.steps.blocks.model.language_model import build_model, unwrap
from nemotron_style.steps.blocks.model.parallel import initialize
from nemotron_style.steps.blocks.reward.config import RewardConfig, Scale
from nemotron_style.steps.blocks.reward.model import RewardModel
from nemotron_style.steps.blocks.reward.regression_model import load_trunk, pack_conversations
from nemotron_style.steps.blocks.settings.model_config import ModelConfig
from nemotron_style.steps.reward.regression.artifact import (
    merge_outputs,
    write_settings,
    write_tokenizer,
    write_weights,
)

WORDS = ("wide", "calm", "deep", "old")
SCALE = {"helpfulness": Scale(mean=2.0, std=1.5), "verbosity": Scale(mean=1.0, std=0.5)}
WEIGHTS = {"helpfulness": 1.0, "verbosity": -0.2}


def conversation(place: int) -> list[dict[str, str]]:
    asked = {"role": "user", "content": "Describe the river" + " again" * (place % 7) + "."}
    said = {"role": "assistant", "content": f"It is {WORDS[place % 4]}.\n"}
    before = [asked, said] if place % 3 == 0 else []
    system = [{"role": "system", "content": "Be brief."}] if place % 2 else []
    return [*system, *before, asked, said]


CONVERSATIONS = [conversation(place) for place in range(24)]


def write(path: Path, *, merge: bool, switches: dict[str, Any] | None = None) -> Path:
    initialize(seed=1)
    texts = [message["content"] for messages in CONVERSATIONS for message in messages]
    tokens = ChatPromptTokens()
    tokenizer = train_tokenizer(texts, 320, path / "tokenizer", tokens=tokens)
    sizes = ModelConfig(
        num_layers=2, hidden_size=32, ffn_hidden_size=48, num_attention_heads=4,
        num_query_groups=2, vocab_size=tokenizer.vocab_size, max_sequence_length=96,
        **(switches or {}),
    )  # fmt: skip
    save_model(build_model(sizes, seed=3), path / "start", config=sizes, tokenizer=tokenizer.path)
    model, sizes = load_trunk(path / "start", outputs=2)
    draw = torch.Generator().manual_seed(5)
    unwrap(model).score.weight.data.normal_(generator=draw)
    config = RewardConfig(
        outputs=tuple(SCALE), weights=WEIGHTS, scale=SCALE, max_sequence_length=96, chat=tokens
    )
    told, mix = merge_outputs(config) if merge else (config, None)
    out = path / "reward"
    out.mkdir()
    write_weights(model, out, sizes=sizes, mix=mix)
    ids = write_tokenizer(tokenizer.path, out, pad_token=tokens.label_start)
    write_settings(out, sizes=sizes, config=told, dtype="float32", token_ids=ids)
    return out


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    return write(tmp_path_factory.mktemp("reward"), merge=False)


def test_a_model_of_half_precision_has_one_type_and_scores_in_float32(folder: Path) -> None:
    """megatron-core's optimizer on CUDA cannot save the state of a model of two types."""
    model, _ = load_trunk(folder.parent / "start", outputs=2, dtype=torch.bfloat16)
    assert {weight.dtype for weight in model.parameters()} == {torch.bfloat16}
    unwrap(model).score.weight.data.normal_(generator=torch.Generator().manual_seed(5))
    rows = pack_conversations([[5, 6, 7], [8, 9]])
    with torch.no_grad():
        outputs = unwrap(model)(rows)
    assert outputs.dtype is torch.float32
    rounded = outputs.bfloat16().float()
    assert not torch.equal(outputs, rounded)


@pytest.mark.parametrize("limit", [1, 100, 16384])
def test_what_stands_beside_a_conversation_changes_nothing(folder: Path, limit: int) -> None:
    model = RewardModel.load(folder)
    alone = [model.score([one])[0] for one in CONVERSATIONS]
    assert len({round(one.score, 3) for one in alone}) > 10
    shuffled = CONVERSATIONS[::-1]
    for one, other in zip(alone, model.score(shuffled, batch_tokens=limit)[::-1], strict=True):
        assert other.score == pytest.approx(one.score, abs=1e-5)
        assert other.attributes == pytest.approx(one.attributes, abs=1e-5)


def test_the_score_is_the_weighted_sum_in_units_of_the_data(folder: Path) -> None:
    for found in RewardModel.load(folder).score(CONVERSATIONS):
        weighted = sum(WEIGHTS[name] * value for name, value in found.attributes.items())
        assert found.score == pytest.approx(weighted)


def test_a_merged_model_scores_alike(folder: Path, tmp_path: Path) -> None:
    merged = RewardModel.load(write(tmp_path, merge=True))
    assert merged.outputs == ("score",)
    pairs = zip(
        merged.score(CONVERSATIONS), RewardModel.load(folder).score(CONVERSATIONS), strict=True
    )
    for one, other in pairs:
        assert one.score == pytest.approx(other.score, abs=1e-5)


GEMMA: dict[str, Any] = {
    "architecture": "gemma3",
    "activation": "geglu",
    "zero_centered_gamma": True,
    "norm_placement": "both",
    "qk_norm": "head",
    "sliding_window": 12,
    "full_attention_every": 2,
    "local_rope_theta": 1e4,
    "embedding_multiplier": 32**0.5,
    "tie_embeddings": True,
}
TRUNKS: dict[str, dict[str, Any]] = {
    "Llama": {},
    "Llama, tied": {"tie_embeddings": True},
    "Qwen2": {"architecture": "qwen2", "qkv_bias": True},
    "Olmo2": {"architecture": "olmo2", "norm_placement": "post", "qk_norm": "full"},
    "Gemma3Text": GEMMA,
}


@pytest.mark.parametrize("trunk", TRUNKS)
def test_transformers_computes_the_same(tmp_path: Path, trunk: str) -> None:
    transformers = pytest.importorskip("transformers")
    path = write(tmp_path, merge=False, switches=TRUNKS[trunk])
    ours = RewardModel.load(path)
    tokenizer = transformers.AutoTokenizer.from_pretrained(path)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(
        path, dtype=torch.float32
    )
    assert type(model).__name__ == f"{trunk.partition(',')[0]}ForSequenceClassification"
    batch = tokenizer.apply_chat_template(
        CONVERSATIONS, padding=True, return_tensors="pt", return_dict=True
    )
    with torch.no_grad():
        outputs = model(**batch).logits
    assert [model.config.id2label[place] for place in range(2)] == list(ours.outputs)
    for found, row in zip(ours.score(CONVERSATIONS), outputs.tolist(), strict=True):
        expected = ours.config.rate(row).attributes
        assert found.attributes == pytest.approx(expected, abs=1e-5)


def test_reading_and_scoring_needs_no_megatron_and_no_transformers(folder: Path) -> None:
    script = (
        "import sys\n"
        "for name in ('megatron', 'transformers'): sys.modules[name] = None\n"
        "from pathlib import Path\n"
        "from nemotron_style.steps.blocks.reward.model import RewardModel\n"
        "model = RewardModel.load(Path(sys.argv[1]))\n"
        "said = [{'role': 'user', 'content': 'a'}, {'role': 'assistant', 'content': 'b'}]\n"
        "print(len(model.score([said, said])))\n"
    )
    command = [sys.executable, "-c", script, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout == "2\n", done.stderr


def test_every_bad_conversation_is_told_at_once(folder: Path) -> None:
    model = RewardModel.load(folder)
    asked, said = ({"role": role, "content": "x"} for role in ("user", "assistant"))
    bad = [
        [asked, said],
        [asked],
        [asked, {"role": "assistant", "content": "x\x11y"}],
        [asked, {"role": "assistant", "content": "x " * 200}],
        [asked, said, asked],
    ]
    with pytest.raises(InputError) as caught:
        model.score(bad)
    told = str(caught.value).splitlines()
    assert [line[:16] for line in told] == [f"conversations[{place}]" for place in range(1, 5)]
    assert "control token" in told[1]
    assert "longer than the model may read" in told[2]


def test_layers_that_are_only_promised_are_not_even_listed(folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(folder, tmp_path / "promising")
    file = copy / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"num_hidden_layers": 9_999}))
    with pytest.raises(InputError, match="promises more layers") as caught:
        RewardModel.load(copy)
    assert len(caught.value.problems) == 1


def test_no_conversation_no_score(folder: Path) -> None:
    assert RewardModel.load(folder).score([]) == []


DAMAGE = {
    "no config": (lambda p: (p / "reward_config.json").unlink(), "no reward_config.json"),
    "no weights": (lambda p: (p / "model.safetensors").unlink(), "no weights"),
    "cut weights": (
        lambda p: (p / "model.safetensors").write_bytes(b"\x08" + bytes(20)),
        "no safetensors file",
    ),
    "another head": (
        lambda p: edit(p / "reward_config.json", lambda told: told.update(
            outputs=["a"], weights={"a": 1.0}, scale={"a": {"mean": 0.0, "std": 1.0}}
        )),
        r"score\.weight: a tensor is missing or has another shape",
    ),
    "a scale of nothing": (
        lambda p: edit(
            p / "reward_config.json", lambda told: told["scale"]["verbosity"].update(std=0)
        ),
        r"scale\.verbosity\.std",
    ),
    "other sizes": (
        lambda p: edit(p / "config.json", lambda told: told.update(intermediate_size=64)),
        r"layers\.1\.mlp\.down_proj\.weight: a tensor is missing or has another shape",
    ),
    "scaled positions": (
        lambda p: edit(
            p / "config.json", lambda told: told.update(rope_scaling={"type": "longrope"})
        ),
        "rotary positions are scaled",
    ),
    "another architecture": (
        lambda p: edit(
            p / "config.json", lambda told: told.update(architectures=["LlamaForCausalLM"])
        ),
        "another architecture",
    ),
}  # fmt: skip


def edit(file: Path, change) -> None:
    told = json.loads(file.read_text())
    change(told)
    file.write_text(json.dumps(told))


@pytest.mark.parametrize("name", DAMAGE)
def test_damaged_files_are_refused(folder: Path, tmp_path: Path, name: str) -> None:
    damage, told = DAMAGE[name]
    shutil.copytree(folder, tmp_path / "copy")
    damage(tmp_path / "copy")
    with pytest.raises(InputError, match=told):
        RewardModel.load(tmp_path / "copy")


def test_on_a_card_the_scores_are_those_of_the_cpu(folder: Path) -> None:
    model = RewardModel.load(folder)
    with card():
        weights = {name: weight.to(CARD) for name, weight in model.weights.items()}
        there = replace(model, weights=weights).score(CONVERSATIONS)
    for one, other in zip(there, model.score(CONVERSATIONS), strict=True):
        assert one.score == pytest.approx(other.score, abs=1e-5)
