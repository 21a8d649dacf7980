"""A small model with a tokenizer, and groups that it scored itself: what sft/steerlm2 reads."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nemotron_style.runtime.step.context import StepContext, Stop
from nemotron_style.runtime.store.record import Artifact
from nemotron_style.runtime.store.store import Store
from nemotron_style.steps.blocks.checkpoint.model_checkpoint import save_model, weights_digest
from nemotron_style.steps.blocks.data.chat_format import ChatPromptTokens
from nemotron_style.steps.blocks.data.conversation import Conversation, Turn
from nemotron_style.steps.blocks.data.jsonl import write_rows
from nemotron_style.steps.blocks.data.steerlm2_row import LOG_P_A, LOG_P_Y, LOG_Q
from nemotron_style.steps.blocks.data.tokenizer_training import train_tokenizer
from nemotron_style.steps.blocks.generation.chat_sampler import (
    Request,
    load_chat_sampler,
    without_label,
)
from nemotron_style.steps.blocks.model.language_model import build_model
from nemotron_style.steps.blocks.model.parallel import initialize
from nemotron_style.steps.blocks.settings.model_config import ModelConfig
from nemotron_style.steps.sft.steerlm2.config import Config
from nemotron_style.steps.sft.steerlm2.recipe import run
from overrides import override

WORDS = ("red", "blue", "small", "large", "old", "new", "warm", "cold")
SETTINGS: dict[str, Any] = {
    "seed": 5,
    "trainer": {"precision": 32, "sft": {"val_check_interval": 2}},
    "model": {
        "steerlm2": {"micro_batch_size": 16, "forward_micro_batch_size": 16},
        "data": {"train_ds": {"global_batch_size": 4}},
        "optim": {"lr": 2e-3, "weight_decay": 0.0, "sched": {"min_lr": 2e-3}},
    },
}


@dataclass
class World:
    """A store with the inputs of the step, and the rows they were written from."""

    store: Store
    model: Artifact
    train: list[dict[str, Any]]
    validation: list[dict[str, Any]]

    def data(self, name: str, rows: Sequence[dict[str, Any]], **facts: Any) -> Artifact:
        """Rows as an artifact that says who sampled them."""
        staged = self.store.stage(name)
        write_rows(staged / "rows.jsonl", rows)
        facts = {"sampler_digest": self.model.facts["weights_digest"]} | facts
        return self.store.commit(staged, name=name, kind="steerlm2_jsonl", facts=facts)

    def context(self, run_dir: Path, **changes: Any) -> StepContext:
        """A context for the run in ``run_dir``; ``changes`` replace inputs or seating."""
        inputs = {
            "model": self.model,
            "data": changes.pop("data", None) or self.data("train", self.train),
            "validation": self.data("validation", self.validation),
        }
        changes.setdefault("stop", Stop())
        return StepContext(run_dir=run_dir, inputs=inputs, outputs=("model",), **changes)

    def train_in(self, run_dir: Path, *overrides: str, **changes: Any) -> StepContext:
        """Run the step and return its context."""
        ctx = self.context(run_dir, **changes)
        try:
            run(settings(*overrides), ctx)
        finally:
            ctx.metrics.close()
        return ctx


def settings(*overrides: str) -> Config:
    """The settings of the small world, with ``a.b=json`` on top."""
    return Config.model_validate(override(SETTINGS, *overrides))


def make_world(root: Path) -> World:
    """A random model, and 18 rows of 4 responses each that it scored."""
    initialize(seed=1)
    tokens = ChatPromptTokens()
    texts = [f"System User Assistant describe {a} {b} h:0 v:1" for a in WORDS for b in WORDS]
    tokenizer = train_tokenizer(texts, 320, root / "tokenizer", tokens=tokens)
    sizes = ModelConfig(
        num_layers=2,
        hidden_size=32,
        ffn_hidden_size=64,
        num_attention_heads=4,
        num_query_groups=2,
        vocab_size=tokenizer.vocab_size,
        max_sequence_length=64,
    )
    store = Store(root / "store")
    staged = store.stage("model")
    model = build_model(sizes, seed=3, ddp=False)
    save_model(model, staged, config=sizes, tokenizer=tokenizer.path)
    facts = {"weights_digest": weights_digest(staged)}
    artifact = store.commit(staged, name="start", kind="checkpoint_megatron", facts=facts)
    rows = scored_rows(artifact.path, 18)
    return World(store, artifact, rows[:12], rows[12:])


def scored_rows(model: Path, count: int) -> list[dict[str, Any]]:
    """Rows of random answers with what ``model`` says of them; long answers fit the label best."""
    sampler, rng = load_chat_sampler(model), random.Random(2)
    asked = [
        Request(Conversation(None, (Turn("User", f"describe {rng.choice(WORDS)}"),)), "v:1", 0)
        for _ in range(count)
    ]
    said = [[_sentence(rng) for _ in range(4)] for _ in asked]
    log_q = sampler.score_responses(asked, said)
    log_p_y = sampler.score_responses(without_label(asked), said)
    return [
        {
            "system": "",
            "prompt_turns": [{"from": "User", "value": request.conversation.turns[0].value}],
            "label": "v:1",
            "responses": [
                {
                    "from": "Assistant",
                    "value": text,
                    LOG_P_A: -5.0 + min(4.0, len(text.split())),
                    LOG_P_Y: p_y,
                    LOG_Q: q,
                }
                for text, p_y, q in zip(texts, p_ys, qs, strict=True)
            ],
        }
        for request, texts, p_ys, qs in zip(asked, said, log_p_y, log_q, strict=True)
    ]


def _sentence(rng: random.Random) -> str:
    return " ".join(rng.choice(WORDS) for _ in range(rng.randint(1, 4)))
