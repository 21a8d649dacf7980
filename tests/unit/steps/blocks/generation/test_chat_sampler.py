"""What of a sample becomes a text: nothing that is read otherwise than it was sampled."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from nemotron_style.steps.blocks.data.chat.opening import open_chat
from nemotron_style.steps.blocks.data.chat_format import ChatPromptTokens
from nemotron_style.steps.blocks.data.conversation import parse_messages
from nemotron_style.steps.blocks.data.tokenizer_training import train_tokenizer
from nemotron_style.steps.blocks.generation.chat_sampler import ChatSampler, Request
from nemotron_style.steps.blocks.generation.engine import Sample
from small_model import ONE_LAYER

SIZES = ONE_LAYER.model_copy(update={"max_sequence_length": 256})
CONVERSATION = parse_messages([{"role": "user", "content": "Where is it?"}])


class Script:
    """Says the same tokens whatever it is asked."""

    def __init__(self, tokens: Sequence[int]) -> None:
        self.sample = Sample(list(tokens), [0.0] * len(tokens), "stop")

    def generate(self, prompts: Sequence[Any], *_: Any, **__: Any) -> list[list[Sample]]:
        return [[self.sample] for _ in prompts]


@pytest.fixture
def sampler(tmp_path: Path) -> ChatSampler:
    texts = ["It is here.", "Where is it?"] * 2
    tokenizer = train_tokenizer(texts, 400, tmp_path, tokens=ChatPromptTokens())
    return ChatSampler(nn.Identity(), SIZES, open_chat(tokenizer))


def encode(sampler: ChatSampler, text: str) -> list[int]:
    return sampler.chat.tokenizer.encode(text, control=True)


def test_a_response_with_an_id_of_no_token_is_not_usable(sampler: ChatSampler) -> None:
    tokens = sampler.chat.response_ids("It is here.")
    request, padding = Request(CONVERSATION, None, 1), sampler.chat.tokenizer.vocab_size + 3
    sampler.engine = Script(tokens)
    [[response]] = sampler.sample([request], samples=1, max_new_tokens=64)
    assert response
    assert response.text == "It is here."
    sampler.engine = Script([tokens[0], padding, *tokens[1:]])
    assert sampler.sample([request], samples=1, max_new_tokens=64) == [[None]]


def test_a_label_with_an_id_of_no_token_is_no_label(sampler: ChatSampler) -> None:
    label = "quality:4\n"
    pair, padding = (CONVERSATION, "It is here."), sampler.chat.tokenizer.vocab_size
    sampler.engine = Script(encode(sampler, label))
    assert sampler.predict_labels([pair]) == ["quality:4"]
    sampler.engine = Script([padding, *encode(sampler, label)])
    assert sampler.predict_labels([pair]) == ["\ufffd"]
