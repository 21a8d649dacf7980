"""What the files of a model say about it, before any of its weights is read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from nemotron_style.runtime.errors import InputError, Problem, raise_all
from nemotron_style.steps.blocks.data.chat_format import ChatPromptTokens
from nemotron_style.steps.blocks.settings.model_config import ModelConfig
from nemotron_style.steps.convert.nemo_to_megatron.archive import ModelFiles, Span
from nemotron_style.steps.convert.nemo_to_megatron.config import Config
from nemotron_style.steps.convert.nemo_to_megatron.layout import Layout, find_layout
from nemotron_style.steps.convert.nemo_to_megatron.megatron_args import read_args
from nemotron_style.steps.convert.nemo_to_megatron.model_keys import (
    NemoConfig,
    parse_config,
    read_model_config,
)
from nemotron_style.steps.convert.nemo_to_megatron.tokenizer import (
    find_added_tokens,
    find_tokenizer_files,
)


@dataclass(frozen=True)
class Description:
    """The parts of a model: ``weights`` are the files of a ``torch_dist`` directory.

    ``tokenizer`` has the tokenizer's files by name, and none where a folder is given for it;
    ``chat`` the control tokens that NeMo-Aligner trained the model with.
    """

    config: NemoConfig
    weights: Mapping[str, Span]
    tokenizer: Mapping[str, Span]
    chat: ChatPromptTokens | None

    def sizes(self, *, vocab_size: int) -> ModelConfig:
        """The model; ``vocab_size`` are the rows of its embedding, which no key says."""
        return read_model_config(self.config, vocab_size=vocab_size)


def describe(files: ModelFiles, config: Config, *, has_tokenizer: bool) -> Description:
    """The parts of a model; ``has_tokenizer`` where a folder is given for that.

    Raises InputError with all that cannot be converted: keys, weights of another format, a
    tokenizer that is not there.
    """
    layout, problems = find_layout(files), list[Problem]()
    nemo = _read_config(files, layout, config)
    where = nemo.where
    try:
        read_model_config(nemo, vocab_size=1)
    except InputError as error:
        problems += error.problems
    found: Mapping[str, Span] = {}
    if not has_tokenizer:
        settings = nemo.section("tokenizer")
        problems += find_added_tokens(settings, where=where)
        try:
            found = find_tokenizer_files(files, settings)
        except InputError as error:
            problems += error.problems
    raise_all(InputError, problems)
    chat = config.model.data.chat_prompt_tokens or _stored_chat(nemo)
    return Description(nemo, files.inside(layout.weights), found, chat)


def _read_config(files: ModelFiles, layout: Layout, config: Config) -> NemoConfig:
    if not layout.config:
        return read_args(files)
    where = f"{files.where}: {layout.config}"
    ignored = tuple(config.model.ignore_keys)
    return parse_config(files.text(layout.config), where=where, ignored=ignored)


def _stored_chat(nemo: NemoConfig) -> ChatPromptTokens | None:
    """The chat format of a model that NeMo-Aligner trained on conversations."""
    data: Mapping[str, Any] = nemo.section("data")
    tokens = data.get("chat_prompt_tokens")
    if not data.get("chat") or not isinstance(tokens, Mapping):
        return None
    names = ChatPromptTokens.model_fields
    try:
        return ChatPromptTokens.model_validate({k: v for k, v in tokens.items() if k in names})
    except ValidationError:
        return None
