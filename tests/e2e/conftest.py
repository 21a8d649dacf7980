"""A toy whose truth is known, and a small chat model of it that was trained for a few seconds."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from nemotron_style.runtime.store.record import Artifact
from nemotron_style.runtime.store.store import Store
from nemotron_style.steps.blocks.checkpoint.model_checkpoint import save_model
from nemotron_style.steps.blocks.data.chat.opening import open_chat
from nemotron_style.steps.blocks.data.chat_format import ChatPromptTokens
from nemotron_style.steps.blocks.data.conversation import Conversation, Turn
from nemotron_style.steps.blocks.data.tokenizer import Tokenizer
from nemotron_style.steps.blocks.data.tokenizer_training import train_tokenizer
from nemotron_style.steps.blocks.data.toy_truth import Truth
from nemotron_style.steps.blocks.model.language_model import build_model
from nemotron_style.steps.blocks.model.parallel import initialize
from nemotron_style.steps.blocks.model.prefix_packing import Group, pack
from nemotron_style.steps.blocks.settings.model_config import ModelConfig
from nemotron_style.steps.blocks.settings.optimizer_config import OptimConfig
from nemotron_style.steps.blocks.training.microbatch import accumulate_gradients
from nemotron_style.steps.blocks.training.optimizer import build_optimizer
from once import make_once
from plots import draw_once

NOUNS = {"river": "wet", "lake": "wet", "oven": "hot", "fire": "hot"}
CLASSES = {"wet": ("deep", "cold", "blue", "calm"), "hot": ("red", "dry", "loud", "bright")}
CONTEXTS = ("now", "today", "again", "here", "there", "twice")


@dataclass(frozen=True)
class SmallToy:
    """The toy's artifacts, in a store of their own."""

    store: Store
    truth: Artifact
    model: Artifact
    prompts: Artifact


@pytest.fixture(scope="session")
def small_toy(tmp_path_factory: pytest.TempPathFactory) -> SmallToy:
    """The toy, made once for all workers; each has a copy of its own to write to."""
    made = make_once(tmp_path_factory, "toy", make_toy)
    store = Store(shutil.copytree(made / "store", tmp_path_factory.mktemp("toy") / "store"))
    return SmallToy(
        store,
        truth=store.resolve("truth"),
        model=store.resolve("model"),
        prompts=store.resolve("prompts"),
    )


def make_toy(root: Path) -> None:
    """Write the toy's artifacts into a store at ``root``."""
    truth = Truth(nouns=NOUNS, classes=CLASSES, contexts=CONTEXTS)
    (root / "truth.json").write_text(truth.model_dump_json())
    prompts = [truth.prompt(noun, context) for noun in NOUNS for context in CONTEXTS]
    rows = [{"messages": [{"role": "user", "content": prompt}]} for prompt in prompts]
    (root / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    train_toy(truth, root / "model")
    store = Store(root / "store")
    store.adopt(str(root / "truth.json"), kind="attribute_truth", name="truth")
    store.adopt(str(root / "model"), kind="checkpoint_megatron", name="model")
    store.adopt(str(root / "prompts.jsonl"), kind="prompts_jsonl", name="prompts")


def train_toy(truth: Truth, path: Path, *, steps: int = 120, seed: int = 1) -> None:
    """A model that answers, follows labels and names them, all of it middling."""
    initialize(seed=seed)
    draw = random.Random(seed)
    examples = [make_example(truth, draw) for _ in range(2000)]
    texts = [f"{turn.value}\n{row.response}\n{row.label}" for row in examples for turn in row.turns]
    words = ChatPromptTokens(
        system_turn_start="<extra_id_0>", turn_start="<extra_id_1>", label_start="<extra_id_2>"
    )
    tokenizer = train_tokenizer(texts, 360, path.parent / "tokenizer", tokens=words)
    config = ModelConfig(
        num_layers=2, hidden_size=48, ffn_hidden_size=96, num_attention_heads=4,
        num_query_groups=2, vocab_size=tokenizer.vocab_size, max_sequence_length=96,
    )  # fmt: skip
    model = build_model(config, seed=seed)
    optimizer = build_optimizer(model, OptimConfig(lr=5e-3))
    groups = [as_group(tokenizer, row) for row in examples]
    for step in range(steps):
        packed = pack(draw.sample(groups, 64))
        count = packed.label_tokens
        accumulate_gradients(model, [(packed, count)], lambda lp, n: (-lp.sum() / n, None))
        optimizer.step(5e-3 * (1 - step / steps), step=step, loss=1.0)
    save_model(model, path, config=config, tokenizer=tokenizer.path)


def make_example(truth: Truth, draw: random.Random) -> Conversation:
    noun = draw.choice(list(NOUNS))
    prompt = truth.prompt(noun, draw.choice(CONTEXTS))
    words = truth.fitting(noun) if draw.random() < 0.5 else truth.adjectives
    response = truth.response(noun, draw.sample(words, draw.randint(1, 4)))
    label = truth.format(truth.score(prompt, response))
    kind = draw.choice(["VALUE_TO_TEXT", "TEXT_TO_VALUE", None])
    return Conversation(None, (Turn("User", prompt),), response, label, kind)


def as_group(tokenizer: Tokenizer, row: Conversation) -> Group:
    prompt, target = open_chat(tokenizer).texts.example(row)
    return Group(tokenizer.encode(prompt, control=True), [tokenizer.encode(target, control=True)])


@pytest.fixture(scope="module", autouse=True)
def plots_are_drawn_once() -> Iterator[None]:
    """Of the runs in this process; what the command line starts draws its own."""
    with pytest.MonkeyPatch.context() as patch:
        for module in ("blocks.stats.metric_plot", "reward.regression.plot"):
            patch.setattr(f"nemotron_style.steps.{module}.draw_panels", draw_once)
        yield


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Numeric work of these tests stays on one core, whoever else is busy."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
