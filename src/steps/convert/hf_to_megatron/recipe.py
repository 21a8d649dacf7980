"""``convert/hf_to_megatron``: a model from Hugging Face as the training steps read it.

Everything that the folder asks for and a model here does not do (other families, switches that its
family does not have, quantised or pickled weights) is refused before any work. What is written is
read again and must give the logits that the folder gives: by transformers where that is installed,
else by plain torch, which reads the folder by its own meaning; the record says which it was. The
checkpoint can be loaded with any tensor and pipeline parallel size.
"""

from __future__ import annotations

import shutil

from torch import Tensor

from nemotron_style.runtime.step.context import StepContext
from nemotron_style.steps.blocks.checkpoint.conversion import (
    check_logits,
    pad_sizes,
    record,
    sample_logits,
    track_reads,
)
from nemotron_style.steps.blocks.checkpoint.hf_weights import pad_rows, read_whole
from nemotron_style.steps.blocks.checkpoint.model_checkpoint import (
    WEIGHTS,
    check_checkpoint,
    copy_model,
    full_shapes,
    weights_digest,
)
from nemotron_style.steps.blocks.checkpoint.streamed_model import stream_model
from nemotron_style.steps.blocks.checkpoint.torch_dist_stream import WeightFolder
from nemotron_style.steps.blocks.model.parallel import initialize
from nemotron_style.steps.convert.hf_to_megatron.config import Config
from nemotron_style.steps.convert.hf_to_megatron.source import UNPACKED, open_source


def run(config: Config, ctx: StepContext) -> None:
    """Write ``model`` as a checkpoint, and refuse it when it computes something else."""
    initialize(seed=config.seed)
    source = open_source(ctx.input("model").path, config, run_dir=ctx.run_dir)
    sizes = pad_sizes(source.sizes, config.model.make_vocab_size_divisible_by)
    output = ctx.output("model")

    # -- the checkpoint
    shapes = full_shapes(sizes)

    def read(name: str) -> Tensor:
        whole = read_whole(name, source.tensors.read, source.sizes)
        return pad_rows(whole, shapes[name][0]).to(source.dtype)

    copy_model(
        track_reads(read, ctx, total=len(shapes)),
        output.path,
        config=sizes,
        dtype=source.dtype,
        tokenizer=source.tokenizer.path,
    )
    output.note(weights_digest=weights_digest(output.path))

    # -- the logits of the checkpoint as it was written, against those of the folder
    written = stream_model(check_checkpoint(output.path), WeightFolder(output.path / WEIGHTS).read)
    known = min(source.tokenizer.vocab_size, source.sizes.vocab_size)
    sample = sample_logits(written, config, vocab_size=known, max_tokens=sizes.max_sequence_length)
    parity = check_logits(sample, source.path, config, ctx, dtype=source.dtype)
    shutil.rmtree(ctx.run_dir / UNPACKED, ignore_errors=True)  # as large as the model
    dtype = str(source.dtype).removeprefix("torch.")
    record(ctx, parity, sizes=sizes, dtype=dtype, tokenizer=source.tokenizer)
