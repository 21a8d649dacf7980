"""``convert/hf_to_megatron``: a Llama from Hugging Face as the training steps read it, and checked.

Everything that the folder asks for and a model here does not do (scaled rotary positions, biases,
other architectures, quantised or pickled weights) is refused before any work. What is written is
read again and has to give the logits that the folder gives: by transformers where that is
installed, else by a Llama in plain torch which reads the folder by its own meaning; the record
says which it was. The checkpoint can be loaded with any tensor and pipeline parallel size.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from torch import Tensor

from nemotron_style.runtime.errors import Interrupted
from nemotron_style.runtime.step.context import StepContext
from nemotron_style.steps.blocks.checkpoint.hf_weights import fill_model, import_weights
from nemotron_style.steps.blocks.checkpoint.logit_parity import (
    compare_logits,
    model_logits,
    sample_rows,
)
from nemotron_style.steps.blocks.checkpoint.model_checkpoint import (
    full_shapes,
    load_model,
    save_model,
    weights_digest,
)
from nemotron_style.steps.blocks.data.tokenizer_files import describe_words
from nemotron_style.steps.blocks.model.language_model import build_model
from nemotron_style.steps.blocks.model.parallel import initialize
from nemotron_style.steps.convert.hf_to_megatron.config import Config
from nemotron_style.steps.convert.hf_to_megatron.source import Source, open_source, pad_sizes


def run(config: Config, ctx: StepContext) -> None:
    """Write ``model`` as a checkpoint, and refuse it when it computes something else."""
    initialize(seed=config.seed)
    source = open_source(ctx.input("model").path, config, run_dir=ctx.run_dir)
    sizes = pad_sizes(source.sizes, config.model.make_vocab_size_divisible_by)
    output = ctx.output("model")

    # -- the checkpoint
    model = build_model(sizes, dtype=source.dtype, ddp=False, initial=None)
    fill_model(model, read_weights(source, ctx))
    save_model(model, output.path, config=sizes, tokenizer=source.tokenizer.path)
    digest = weights_digest(model)
    del model

    # -- what it computes, as it lies on the disk
    written, _ = load_model(output.path, ddp=False)
    length = min(config.sample_tokens, sizes.max_sequence_length)
    known = min(source.tokenizer.vocab_size, source.sizes.vocab_size)
    rows = sample_rows(known, rows=config.sample_rows, tokens=length, seed=config.seed)
    logits = model_logits(written, rows)
    del written
    found = compare_logits(logits, source.path, rows, dtype=source.dtype)
    ctx.say(f"logits differ by {found.max_logit_difference:.2e} at most, by {found.by}")
    found.require(config.max_logit_difference, where=str(output.path))

    kind = str(source.dtype).removeprefix("torch.")
    output.note(
        weights_digest=digest,
        parameters=sum(math.prod(shape) for shape in full_shapes(sizes).values()),
        dtype=kind,
        **describe_words(source.tokenizer),
        **found.note(),
    )
    ctx.summarise(
        max_logit_difference=found.max_logit_difference,
        checked_by=found.by,
        dtype=kind,
        vocab_size=sizes.vocab_size,
    )


def read_weights(source: Source, ctx: StepContext) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of the model, one at a time, telling how far it is."""
    total = len(full_shapes(source.sizes))
    for number, pair in enumerate(import_weights(source.tensors.read, source.sizes), 1):
        if ctx.stopping:
            raise Interrupted("stopped; the same command starts the conversion again")
        yield pair
        ctx.progress(number, total)
