"""A checkpoint written by processes that divide the model."""

from __future__ import annotations

from pathlib import Path

from nemotron_style.steps.blocks.checkpoint.model_checkpoint import (
    TOKENIZER,
    load_model,
    save_model,
)
from nemotron_style.steps.blocks.model import parallel


def divide_checkpoint(source: Path, target: Path, division: parallel.Parallel) -> None:
    """What a rank does: read ``source`` and write it as the ranks hold it."""
    parallel.initialize(division)
    model, config = load_model(source)
    save_model(model, target, config=config, tokenizer=source / TOKENIZER)
    parallel.finish()
