"""A Hugging Face folder, checked as a whole: all that is wrong with it is reported at once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch

from nemotron_style.runtime.errors import InputError, Problem, raise_all
from nemotron_style.steps.blocks.checkpoint.conversion import choose_type, pad_sizes
from nemotron_style.steps.blocks.checkpoint.gguf_folder import unpack_gguf
from nemotron_style.steps.blocks.checkpoint.hf_config import CONFIG_FILE, read_sizes
from nemotron_style.steps.blocks.checkpoint.hf_weights import check_tensors
from nemotron_style.steps.blocks.checkpoint.model_checkpoint import TOKENIZER
from nemotron_style.steps.blocks.checkpoint.safetensors_folder import TensorFolder
from nemotron_style.steps.blocks.checkpoint.tokenizer_conversion import with_fast_tokenizer
from nemotron_style.steps.blocks.data.chat_format import ChatPromptTokens
from nemotron_style.steps.blocks.data.tokenizer import Tokenizer
from nemotron_style.steps.blocks.data.tokenizer_files import check_vocabulary, import_tokenizer
from nemotron_style.steps.blocks.settings.model_config import ModelConfig
from nemotron_style.steps.convert.hf_to_megatron.config import Config

UNPACKED = "unpacked"
"""Folder of a run with what was in a GGUF file."""
Part = TypeVar("Part")


@dataclass(frozen=True)
class Source:
    """The parts of the folder; ``dtype`` is the type that the weights will have."""

    path: Path
    sizes: ModelConfig
    tensors: TensorFolder
    tokenizer: Tokenizer
    dtype: torch.dtype


def open_source(path: Path, config: Config, *, run_dir: Path) -> Source:
    """The checked parts of the folder; the tokenizer is copied to ``run_dir``.

    Raises:
        InputError: with everything in its config, weights and tokenizer that cannot be converted.
    """
    path = unpack_gguf(path, run_dir / UNPACKED)
    problems: list[Problem] = []

    def attempt(part: Callable[[], Part]) -> Part | None:
        try:
            return part()
        except InputError as error:
            problems.extend(error.problems)
            return None

    tokens = config.model.data.chat_prompt_tokens
    sizes = attempt(lambda: read_sizes(path))
    tensors = attempt(lambda: TensorFolder(path))
    tokenizer = attempt(lambda: _read_tokenizer(path, run_dir, tokens))
    if sizes and tensors:
        attempt(lambda: check_tensors(tensors, sizes))
    if sizes and tokenizer:
        padded = pad_sizes(sizes, config.model.make_vocab_size_divisible_by)
        attempt(lambda: check_vocabulary(tokenizer, padded, where=str(path / CONFIG_FILE)))
    dtype = None
    if tensors:
        where = str(tensors.path)
        dtype = attempt(lambda: choose_type(config.dtype, tensors.types, where=where))
    raise_all(InputError, problems)
    assert sizes
    assert tensors
    assert tokenizer
    assert dtype
    return Source(path, sizes, tensors, tokenizer, dtype)


def _read_tokenizer(path: Path, run_dir: Path, tokens: ChatPromptTokens | None) -> Tokenizer:
    folder = with_fast_tokenizer(path, run_dir / "converted_tokenizer")
    return import_tokenizer(folder, run_dir / TOKENIZER, tokens=tokens)
