"""What conversions do around the weights: their type and rows, progress, the check, the record."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from nemotron_style.runtime.errors import InputError, Interrupted, Problem
from nemotron_style.runtime.step.context import StepContext
from nemotron_style.steps.blocks.checkpoint.logit_parity import (
    LogitParity,
    compare_logits,
    model_logits,
    sample_rows,
)
from nemotron_style.steps.blocks.checkpoint.model_checkpoint import full_shapes
from nemotron_style.steps.blocks.checkpoint.torch_dist_stream import Read
from nemotron_style.steps.blocks.data.chat.opening import tokenizer_facts
from nemotron_style.steps.blocks.data.tokenizer import Tokenizer
from nemotron_style.steps.blocks.settings.conversion_config import ConversionConfig
from nemotron_style.steps.blocks.settings.model_config import ModelConfig


class LogitSample(NamedTuple):
    """Random rows ``[rows, tokens]`` and a model's logits on them."""

    tokens_BS: Tensor
    logits: Tensor


def sample_logits(
    model: nn.Module, config: ConversionConfig, *, vocab_size: int, max_tokens: int
) -> LogitSample:
    """The logits of the side that was trained here, on rows of ids below ``vocab_size``."""
    tokens = min(config.sample_tokens, max_tokens)
    rows = sample_rows(vocab_size, rows=config.sample_rows, tokens=tokens, seed=config.seed)
    return LogitSample(rows, model_logits(model, rows))


def check_logits(
    sample: LogitSample,
    folder: Path,
    config: ConversionConfig,
    ctx: StepContext,
    *,
    dtype: torch.dtype | None = None,
) -> LogitParity:
    """Compare with the Hugging Face files in ``folder``, their weights rounded to ``dtype``.

    Raises StepFailed when the difference is above the config's limit.
    """
    parity = compare_logits(sample.logits, folder, sample.tokens_BS, dtype=dtype)
    ctx.say(f"logits differ by {parity.max_logit_difference:.2e} at most, by {parity.by}")
    parity.require(config.max_logit_difference, where=str(ctx.output("model").path))
    return parity


def track(
    weights: Iterable[tuple[str, Tensor]], ctx: StepContext, *, total: int
) -> Iterator[tuple[str, Tensor]]:
    """Pass every tensor on, reporting progress. Raises Interrupted when the run should stop."""
    for number, pair in enumerate(weights, 1):
        if ctx.stopping:
            raise Interrupted("stopped; the same command starts the conversion again")
        yield pair
        ctx.progress(number, total)


def track_reads(read: Read, ctx: StepContext, *, total: int) -> Read:
    """``read`` that reports progress. Raises Interrupted when the run should stop."""
    done = 0

    def counted(name: str) -> Tensor:
        nonlocal done
        if ctx.stopping:
            raise Interrupted("stopped; the same command starts the conversion again")
        tensor = read(name)
        done += 1
        ctx.progress(done, total)
        return tensor

    return counted


def record(
    ctx: StepContext, parity: LogitParity, *, sizes: ModelConfig, dtype: str, tokenizer: Tokenizer
) -> None:
    """Write the facts of both directions into the artifact's record and the summary."""
    ctx.output("model").note(
        parameters=sum(math.prod(shape) for shape in full_shapes(sizes).values()),
        dtype=dtype,
        **tokenizer_facts(tokenizer),
        **parity.note(),
    )
    ctx.summarise(
        max_logit_difference=parity.max_logit_difference,
        checked_by=parity.by,
        dtype=dtype,
        vocab_size=sizes.vocab_size,
    )


def pad_sizes(sizes: ModelConfig, unit: int) -> ModelConfig:
    """The sizes with a vocabulary rounded up to a multiple of ``unit``."""
    rounded = -(-sizes.vocab_size // unit) * unit
    return sizes.model_copy(update={"vocab_size": rounded})


def choose_type(wanted: str | None, types: Mapping[str, torch.dtype], *, where: str) -> torch.dtype:
    """The type that a config wants, or the one that all tensors have (``types``, by their names).

    Raises InputError where they have several.
    """
    if wanted:
        kind: torch.dtype = getattr(torch, wanted)
        return kind
    by_type = {kind: name for name, kind in sorted(types.items())}
    if len(by_type) == 1:
        return next(iter(by_type))
    raise InputError(
        Problem(
            where=where,
            key="dtype",
            what="the weights are of several types, and a checkpoint here is of one",
            got=", ".join(f"{kind} ({name})" for kind, name in by_type.items()),
            fix="set dtype=float32, which holds all of them exactly, or dtype=bfloat16",
        )
    )
