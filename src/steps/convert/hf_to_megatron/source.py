"""A Hugging Face folder, checked as a whole: all that is wrong with it is reported at once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch

from nemotron_style.runtime.errors import InputError, Problem, raise_all
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
    dtype = attempt(lambda: choose_type(tensors, config)) if tensors else None
    raise_all(InputError, problems)
    assert sizes
    assert tensors
    assert tokenizer
    assert dtype
    return Source(path, sizes, tensors, tokenizer, dtype)


def _read_tokenizer(path: Path, run_dir: Path, tokens: ChatPromptTokens | None) -> Tokenizer:
    folder = with_fast_tokenizer(path, run_dir / "converted_tokenizer")
    return import_tokenizer(folder, run_dir / TOKENIZER, tokens=tokens)


def pad_sizes(sizes: ModelConfig, unit: int) -> ModelConfig:
    """The sizes with a vocabulary rounded up to a multiple of ``unit``."""
    rounded = -(-sizes.vocab_size // unit) * unit
    return sizes.model_copy(update={"vocab_size": rounded})


def choose_type(tensors: TensorFolder, config: Config) -> torch.dtype:
    """The type in the config, or the one that all tensors have."""
    if config.dtype:
        return getattr(torch, config.dtype)
    by_type = {kind: name for name, kind in sorted(tensors.types.items())}
    if len(by_type) == 1:
        return next(iter(by_type))
    raise InputError(
        Problem(
            where=str(tensors.path),
            key="dtype",
            what="the weights are of several types, and a checkpoint here is of one",
            got=", ".join(f"{kind} ({name})" for kind, name in by_type.items()),
            fix="set dtype=float32, which holds all of them exactly, or dtype=bfloat16",
        )
    )
