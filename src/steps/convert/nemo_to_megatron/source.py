"""A model of NeMo or Megatron-LM, checked as a whole: all that is wrong is reported at once."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import torch

from nemotron_style.runtime.errors import InputError, Problem, raise_all
from nemotron_style.steps.blocks.checkpoint.conversion import choose_type, pad_sizes
from nemotron_style.steps.blocks.checkpoint.model_checkpoint import (
    TOKENIZER,
    check_depth,
    compare_shapes,
    full_shapes,
)
from nemotron_style.steps.blocks.checkpoint.tokenizer_conversion import with_fast_tokenizer
from nemotron_style.steps.blocks.data.tokenizer import Tokenizer
from nemotron_style.steps.blocks.data.tokenizer_files import check_vocabulary, import_tokenizer
from nemotron_style.steps.blocks.settings.model_config import ModelConfig
from nemotron_style.steps.convert.nemo_to_megatron.archive import ModelFiles
from nemotron_style.steps.convert.nemo_to_megatron.config import Config
from nemotron_style.steps.convert.nemo_to_megatron.description import Description, describe
from nemotron_style.steps.convert.nemo_to_megatron.tokenizer import write_tokenizer
from nemotron_style.steps.convert.nemo_to_megatron.weights import (
    EMBEDDING,
    StackedWeights,
    open_weights,
)

Part = TypeVar("Part")
_LAYER = re.compile(r"(decoder\.layers\.)\d+")


@dataclass(frozen=True)
class Source:
    """The parts of a model; ``padded`` has the rows of the embedding that the checkpoint gets."""

    padded: ModelConfig
    weights: StackedWeights
    tokenizer: Tokenizer
    dtype: torch.dtype


def open_source(
    files: ModelFiles, config: Config, *, run_dir: Path, tokenizer_folder: Path | None
) -> Source:
    """The checked parts of a model; the tokenizer is copied to ``run_dir``.

    Raises:
        InputError: with everything in its config, weights and tokenizer that cannot be converted.
    """
    problems: list[Problem] = []

    def attempt(part: Callable[[], Part]) -> Part | None:
        try:
            return part()
        except InputError as error:
            problems.extend(error.problems)
            return None

    told = describe(files, config, has_tokenizer=tokenizer_folder is not None)
    weights = attempt(lambda: open_weights(told.weights, where=files.where))
    tokenizer = attempt(lambda: _import_tokenizer(told, tokenizer_folder, run_dir))
    sizes = attempt(lambda: _check_weights(weights, told)) if weights else None
    padded = pad_sizes(sizes, config.model.make_vocab_size_divisible_by) if sizes else None
    if padded and tokenizer:
        attempt(lambda: check_vocabulary(tokenizer, padded, where=files.where))
    dtype = None
    if weights:
        dtype = attempt(lambda: choose_type(config.dtype, weights.types, where=weights.where))
    raise_all(InputError, problems)
    assert padded
    assert weights
    assert tokenizer
    assert dtype
    return Source(padded, weights, tokenizer, dtype)


def _import_tokenizer(told: Description, given: Path | None, run_dir: Path) -> Tokenizer:
    folder = given or write_tokenizer(told.tokenizer, run_dir / "tokenizer_files")
    converted = run_dir / "converted_tokenizer"
    shutil.rmtree(converted, ignore_errors=True)  # of an attempt that was stopped
    folder = with_fast_tokenizer(folder, converted)
    return import_tokenizer(folder, run_dir / TOKENIZER, tokens=told.chat)


def _check_weights(weights: StackedWeights, told: Description) -> ModelConfig:
    """The model that the description and the weights are, which must be the same."""
    if EMBEDDING not in weights.shapes:
        what, got = "a tensor is missing", ", ".join(sorted(weights.shapes)[:5])
        raise InputError(Problem(where=weights.where, key=EMBEDDING, what=what, got=got))
    sizes = told.sizes(vocab_size=weights.shapes[EMBEDDING][0])
    check_depth(weights.shapes, sizes.num_layers, where=told.config.where, key="num_layers")
    problems = compare_shapes(
        weights.shapes,
        full_shapes(sizes),
        where=weights.where,
        config_file="model_config.yaml",
        unknown="this tensor has no place in the model that model_config.yaml describes",
    )
    raise_all(InputError, _join_layers(problems))
    return sizes


def _join_layers(problems: list[Problem]) -> list[Problem]:
    """One problem for those that several layers have alike, which were one tensor in the files."""
    alike: dict[Problem, list[Problem]] = {}
    for problem in problems:
        alike.setdefault(replace(problem, key=_LAYER.sub(r"\1*", problem.key)), []).append(problem)
    return [
        replace(joined, what=f"{joined.what}, in {len(each)} layers") if len(each) > 1 else each[0]
        for joined, each in alike.items()
    ]
