"""A model from a Hugging Face folder that answers conversations by the in-process engine."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

from nemotron_style.runtime.errors import InputError, Problem
from nemotron_style.runtime.text_file import read_json_file
from nemotron_style.steps.blocks.checkpoint.gguf_folder import unpack_gguf
from nemotron_style.steps.blocks.checkpoint.hf_config import (
    CONFIG_FILE,
    parse_sizes,
    read_settings,
)
from nemotron_style.steps.blocks.checkpoint.hf_weights import (
    check_tensors,
    fill_model,
    import_weights,
)
from nemotron_style.steps.blocks.checkpoint.safetensors_folder import TensorFolder
from nemotron_style.steps.blocks.checkpoint.tokenizer_conversion import with_fast_tokenizer
from nemotron_style.steps.blocks.data.chat.opening import open_chat
from nemotron_style.steps.blocks.data.chat.template_chat import TemplateChat
from nemotron_style.steps.blocks.data.chat_template import ChatTemplate, read_template
from nemotron_style.steps.blocks.data.tokenizer import Tokenizer
from nemotron_style.steps.blocks.data.tokenizer_files import (
    GENERATION_FILE,
    check_vocabulary,
    token_ids,
)
from nemotron_style.steps.blocks.generation.engine import Engine, Sample
from nemotron_style.steps.blocks.generation.sampling_params import SamplingParams
from nemotron_style.steps.blocks.model.language_model import build_model
from nemotron_style.steps.blocks.reward.types import Message
from nemotron_style.steps.blocks.serving.completion import Choice, CompletionTask
from nemotron_style.steps.blocks.settings.model_config import ModelConfig

Settings = tuple[SamplingParams, int]
"""What tasks must have in common to be sampled side by side: the sampling and their ``n``."""


@dataclass(frozen=True)
class LocalChatModel:
    """A model in memory. It stops at ``stop_ids``; ``ending`` is text that ends an answer besides.

    A batch holds ``batch_tokens`` tokens of prompts and answers side by side, or one row that
    alone is longer; more rows wait for their slots.
    """

    model: nn.Module
    config: ModelConfig
    template: ChatTemplate
    stop_ids: tuple[int, ...]
    ending: str
    batch_tokens: int

    @property
    def max_model_len(self) -> int:
        return self.config.max_sequence_length

    @property
    def tokenizer(self) -> Tokenizer:
        return self.template.tokenizer

    @cached_property
    def control_ids(self) -> frozenset[int]:
        """Tokens that are no part of an answer's text; tags of reasoning are."""
        spoken = self.template.spoken.values()
        return (self.template.controls - frozenset(spoken)) | frozenset(self.stop_ids)

    def encode(self, messages: Sequence[Message]) -> list[int]:
        """The prompt of a conversation. Raises InputError as :class:`ChatTemplate` does."""
        return self.template.encode(messages)

    def complete(self, tasks: Sequence[CompletionTask]) -> list[list[Choice]]:
        """``n`` choices for each task, in their order; tasks of equal settings side by side."""
        groups: dict[Settings, list[int]] = {}
        for index, task in enumerate(tasks):
            groups.setdefault(self._settings(task), []).append(index)
        choices: dict[int, list[Choice]] = {}
        for (sampling, n), indices in groups.items():
            samples = self._generate([tasks[index] for index in indices], sampling, n)
            for index, own in zip(indices, samples, strict=True):
                choices[index] = [self._read_sample(sample, tasks[index]) for sample in own]
        return [choices[index] for index in range(len(tasks))]

    def _settings(self, task: CompletionTask) -> Settings:
        sampling = SamplingParams(
            max_new_tokens=task.max_tokens,
            temperature=task.temperature,
            top_p=task.top_p,
            stop_ids=self.stop_ids,
            end_strings=task.stop,
        )
        return sampling, task.n

    def _generate(
        self, tasks: Sequence[CompletionTask], sampling: SamplingParams, samples: int
    ) -> list[list[Sample]]:
        width = max(len(task.prompt) for task in tasks) + sampling.max_new_tokens
        rows = max(1, self.batch_tokens // width)
        engine = Engine(self.model, self.config, max_rows=rows, decode=self._decode)
        return engine.generate(
            [task.prompt for task in tasks],
            sampling,
            samples_per_prompt=samples,
            seed=[task.seed for task in tasks],
        )

    def _decode(self, ids: Sequence[int]) -> str:
        """Text without control tokens; ids without a token have none (``Tokenizer.decode``)."""
        return self.tokenizer.decode(number for number in ids if number not in self.control_ids)

    def _read_sample(self, sample: Sample, task: CompletionTask) -> Choice:
        text = self._decode(sample.tokens)
        ends = [text.index(end) for end in task.stop if end in text]
        if ends:
            text = text[: min(ends)]
        elif sample.finished:
            text = text.removesuffix(self.ending)
        pieces = [self.tokenizer.decode_token(number) for number in sample.tokens if task.pieces]
        return Choice(text, sample.finish, sample.log_probs, pieces)


def load_chat_model(
    path: Path,
    *,
    dtype: torch.dtype = torch.float32,
    batch_tokens: int = 65536,
    max_model_len: int | None = None,
    work: Path | None = None,
) -> LocalChatModel:
    """Read a Hugging Face folder; ``max_model_len`` shortens what the model may hold.

    In ``work`` what is stored otherwise is unpacked: a GGUF file, a SentencePiece tokenizer. Raises
    InputError for everything in the folder that is missing or cannot be represented.
    """
    words = path
    if work:
        path = unpack_gguf(path, work / "unpacked")
        words = with_fast_tokenizer(path, work / "tokenizer")
    settings = read_settings(path)
    sizes = parse_sizes(settings, path)
    tensors, tokenizer = TensorFolder(path), Tokenizer(words)
    check_tensors(tensors, sizes)
    check_vocabulary(tokenizer, sizes, where=str(path / CONFIG_FILE))
    template = read_template(tokenizer)
    template.check()
    model = build_model(sizes, dtype=dtype, ddp=False, initial=False).eval()
    fill_model(model, import_weights(tensors.read, sizes))
    length = min(sizes.max_sequence_length, max_model_len or sizes.max_sequence_length)
    return LocalChatModel(
        model,
        sizes.model_copy(update={"max_sequence_length": length}),
        template,
        stop_ids=tuple(sorted({*_stop_ids(path, settings, tokenizer), *_end_of_turn(template)})),
        ending=_ending(tokenizer),
        batch_tokens=batch_tokens,
    )


def _stop_ids(path: Path, settings: dict[str, Any], tokenizer: Tokenizer) -> Iterator[int]:
    """Every id that any of the files says an answer ends with."""
    file = path / GENERATION_FILE
    generation = read_json_file(file, InputError) if file.is_file() else {}
    for source in (settings, generation, token_ids(tokenizer)):
        ids = source.get("eos_token_id")
        for number in ids if isinstance(ids, list) else [] if ids is None else [ids]:
            if type(number) is not int:
                what, got = "is not the id of a token", repr(number)[:80]
                raise InputError(Problem(where=str(path), key="eos_token_id", what=what, got=got))
            yield number


def _ending(tokenizer: Tokenizer) -> str:
    """What models trained here say before the token that ends an answer."""
    if "chat_prompt_tokens" not in tokenizer.settings:
        return ""
    tokens = open_chat(tokenizer).tokens
    return tokens.end_of_turn if tokens else ""


def _end_of_turn(template: ChatTemplate) -> tuple[int, ...]:
    """What the template writes behind an answer; nothing where it ends none."""
    try:
        return TemplateChat(template).stop_ids
    except InputError:
        return ()
