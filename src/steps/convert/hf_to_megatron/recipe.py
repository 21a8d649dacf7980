"""``convert/hf_to_megatron``: a Llama from Hugging Face as the training steps read it, and checked.

Everything that the folder asks for and a model here does not do (scaled rotary positions, biases,
other architectures, quantised or pickled weights) is refused before any work. What is written is
read again and must give the logits that the folder gives: by transformers where that is
installed, else by a Llama in plain torch which reads the folder by its own meaning; the record
says which it was. The checkpoint can be loaded with any tensor and pipeline parallel size.
"""

from __future__ import annotations

from nemotron_style.runtime.step.context import StepContext
from nemotron_style.steps.blocks.checkpoint.conversion import (
    check_logits,
    record,
    sample_logits,
    track,
)
from nemotron_style.steps.blocks.checkpoint.hf_weights import fill_model, import_weights
from nemotron_style.steps.blocks.checkpoint.model_checkpoint import (
    full_shapes,
    load_model,
    save_model,
    weights_digest,
)
from nemotron_style.steps.blocks.model.language_model import build_model
from nemotron_style.steps.blocks.model.parallel import initialize
from nemotron_style.steps.convert.hf_to_megatron.config import Config
from nemotron_style.steps.convert.hf_to_megatron.source import open_source, pad_sizes


def run(config: Config, ctx: StepContext) -> None:
    """Write ``model`` as a checkpoint, and refuse it when it computes something else."""
    initialize(seed=config.seed)
    source = open_source(ctx.input("model").path, config, run_dir=ctx.run_dir)
    sizes = pad_sizes(source.sizes, config.model.make_vocab_size_divisible_by)
    output = ctx.output("model")

    # -- the checkpoint
    model = build_model(sizes, dtype=source.dtype, ddp=False, initial=None)
    weights = import_weights(source.tensors.read, source.sizes)
    fill_model(model, track(weights, ctx, total=len(full_shapes(source.sizes))))
    save_model(model, output.path, config=sizes, tokenizer=source.tokenizer.path)
    output.note(weights_digest=weights_digest(model))
    del model  # before the written one is loaded

    # -- the logits of the checkpoint as it was written, against those of the folder
    written, _ = load_model(output.path, ddp=False)
    known = min(source.tokenizer.vocab_size, source.sizes.vocab_size)
    sample = sample_logits(written, config, vocab_size=known, max_tokens=sizes.max_sequence_length)
    del written
    parity = check_logits(sample, source.path, config, ctx, dtype=source.dtype)
    dtype = str(source.dtype).removeprefix("torch.")
    record(ctx, parity, sizes=sizes, dtype=dtype, tokenizer=source.tokenizer)
