"""Answers before and after training: the same few prompts, and nothing of the training changes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from nemotron_style.runtime.errors import StepFailed
from nemotron_style.steps.blocks.data.chat.interface import Chat
from nemotron_style.steps.blocks.data.chat.opening import open_chat
from nemotron_style.steps.blocks.data.chat_format import ChatPromptTokens
from nemotron_style.steps.blocks.data.tokenizer_training import train_tokenizer
from nemotron_style.steps.blocks.generation import answer_samples
from nemotron_style.steps.blocks.generation.answer_samples import AnswerSamples, Question
from nemotron_style.steps.blocks.generation.engine import Sample
from nemotron_style.steps.blocks.model.language_model import build_model
from nemotron_style.steps.blocks.model.parallel import Parallel, initialize
from nemotron_style.steps.blocks.settings.training_config import Samples
from small_model import ONE_LAYER

SIZES = ONE_LAYER.model_copy(update={"max_sequence_length": 64})


@pytest.fixture
def chat(tmp_path: Path) -> Chat:
    texts = ["It is here.", "Where is it?", "first|second"] * 2
    return open_chat(train_tokenizer(texts, 400, tmp_path, tokens=ChatPromptTokens()))


@pytest.fixture
def ctx(tmp_path: Path) -> Any:
    initialize(seed=1)
    said: list[str] = []
    return SimpleNamespace(run_dir=tmp_path, is_first=True, say=said.append, said=said)


class Script:
    """An engine that repeats a prompt's length, and says ``text`` for ever after long prompts."""

    text = "It is here."
    prompts: Sequence[Sequence[int]] = ()

    def __init__(self, model: Any, sizes: Any) -> None:
        self.model = model

    def generate(self, prompts: Sequence[Any], params: Any, *, seed: int) -> list[list[Sample]]:
        assert params.temperature == 0
        type(self).prompts = [*type(self).prompts, *prompts]
        finish = "stop" if self.model == "new" else "length"
        return [[Sample(CHAT_IDS[self.model], [], finish)] for _ in prompts]


CHAT_IDS: dict[str, list[int]] = {}


@pytest.fixture
def script(chat: Chat, monkeypatch: pytest.MonkeyPatch) -> type[Script]:
    monkeypatch.setattr(answer_samples, "Engine", Script)
    monkeypatch.setattr(Script, "prompts", [])
    CHAT_IDS["old"] = chat.tokenizer.encode("first|second", control=False)
    CHAT_IDS["new"] = chat.response_ids("It is here.")
    return Script


def ask(chat: Chat, *texts: str) -> list[Question]:
    return [Question(chat.tokenizer.encode(text, control=False), f"as {text}") for text in texts]


def read_cells(ctx: Any) -> list[list[str]]:
    lines = (ctx.run_dir / "samples" / "samples.md").read_text().splitlines()
    assert lines[:2] == ["# Samples", ""]
    rows = [line.replace("\\|", "/").strip("| ").split(" | ") for line in lines[2:]]
    return [rows[0], *rows[2:]]


def test_the_first_different_prompts_are_answered_before_and_after(
    ctx: Any, chat: Chat, script: type[Script]
) -> None:
    questions = ask(chat, "Where is it?", "Where is it?", "It is here.", "never reached")
    table = AnswerSamples.open(ctx, Samples(prompts=2), chat, SIZES, iter(questions))
    table.begin("old", 0)
    table.finish("new", 9)
    assert read_cells(ctx) == [
        ["prompt", "in the data", "before", "after 9 steps"],
        ["Where is it?", "as Where is it?", "first/second […]", "It is here."],
        ["It is here.", "as It is here.", "first/second […]", "It is here."],
    ]
    assert len(script.prompts) == 4
    assert ctx.said == []


def test_an_attempt_that_continues_has_the_answers_of_the_start(
    ctx: Any, chat: Chat, script: type[Script]
) -> None:
    for model, done in (("old", 0), ("new", 3)):  # the second attempt begins after three updates
        table = AnswerSamples.open(ctx, Samples(), chat, SIZES, ask(chat, "Where is it?"))
        table.begin(model, done)
    assert len(script.prompts) == 1
    table.finish("new", 5)
    assert read_cells(ctx)[1][2:] == ["first/second […]", "It is here."]


def test_a_run_whose_start_was_not_sampled_shows_the_end_alone(
    ctx: Any, chat: Chat, script: type[Script]
) -> None:
    table = AnswerSamples.open(ctx, Samples(), chat, SIZES, ask(chat, "Where is it?"))
    table.begin("old", 4)
    table.finish("new", 5)
    assert read_cells(ctx)[0] == ["prompt", "in the data", "after 5 steps"]


def test_what_leaves_no_room_is_passed_over(ctx: Any, chat: Chat, script: type[Script]) -> None:
    long = Question([5] * 60)
    table = AnswerSamples.open(
        ctx, Samples(), chat, SIZES, [long, *ask(chat, "Where is it?"), Question([5] * 40)]
    )
    assert [len(question.ids) for question in table.questions][1:] == [40]
    assert table.max_new_tokens == 24


@pytest.mark.parametrize("settings", [Samples(prompts=0), Samples()])
def test_no_prompts_or_a_divided_model_write_nothing(
    ctx: Any, chat: Chat, settings: Samples, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answer_samples, "current_parallel", lambda: Parallel(tensor=2))
    table = AnswerSamples.open(ctx, settings, chat, SIZES, ask(chat, "Where is it?"))
    table.begin("old", 0)
    table.finish("new", 5)
    assert not (ctx.run_dir / "samples").exists()
    assert len(ctx.said) == bool(settings.prompts)


def test_a_model_that_cannot_answer_ends_no_training(
    ctx: Any, chat: Chat, script: type[Script], monkeypatch: pytest.MonkeyPatch
) -> None:
    table = AnswerSamples.open(ctx, Samples(), chat, SIZES, ask(chat, "Where is it?"))
    table.begin("old", 0)

    def fail(*_: Any, **__: Any) -> None:
        raise StepFailed("the model gave logits that are not finite")

    monkeypatch.setattr(Script, "generate", fail)
    table.finish("new", 5)
    assert read_cells(ctx)[0] == ["prompt", "in the data", "before"]
    assert ctx.said == [
        "warning: no answers for samples.md after 5 steps: "
        "the model gave logits that are not finite"
    ]


def test_the_random_numbers_of_training_stay_as_they_were(ctx: Any, chat: Chat) -> None:
    sizes = SIZES.model_copy(update={"vocab_size": chat.tokenizer.vocab_size})
    model = build_model(sizes, ddp=False)
    before = torch.get_rng_state()
    questions = [*ask(chat, "Where is it?"), Question([1, 2], asks_label=True)]
    table = AnswerSamples.open(ctx, Samples(max_new_tokens=4), chat, sizes, questions)
    table.begin(model, 0)
    table.finish(model, 2)
    assert torch.equal(torch.get_rng_state(), before)
    first, second = (row[-2:] for row in read_cells(ctx)[1:])
    assert first[0] == first[1]
    assert second[0] == second[1]
