"""``convert/nemo_to_megatron``: a model of NeMo or Megatron-LM as the training steps read it.

A ``.nemo`` file, the same as a folder, or a directory of Megatron-LM. The weights are those of the
files, bit for bit, under the names that megatron-core has for a model whose layers are apart. What
the model asks for and none here computes is refused by its key, before any work. No pickle is
executed: weights are read tensor by tensor, and what stands beside them is left alone.

Source: ``NLPSaveRestoreConnector`` and ``MegatronGPTModel`` of NeMo. Left out on purpose: pickled
weights of before megatron-core, adapters, and the optimizer's state.
"""

from __future__ import annotations

import math
import shutil

from torch import Tensor

from nemotron_style.runtime.step.context import StepContext
from nemotron_style.steps.blocks.checkpoint.conversion import track_reads
from nemotron_style.steps.blocks.checkpoint.hf_weights import pad_rows
from nemotron_style.steps.blocks.checkpoint.model_checkpoint import (
    copy_model,
    full_shapes,
    weights_digest,
)
from nemotron_style.steps.blocks.data.chat.opening import tokenizer_facts
from nemotron_style.steps.blocks.model.parallel import initialize
from nemotron_style.steps.convert.nemo_to_megatron.archive import open_files
from nemotron_style.steps.convert.nemo_to_megatron.config import Config
from nemotron_style.steps.convert.nemo_to_megatron.source import open_source


def run(config: Config, ctx: StepContext) -> None:
    """Write ``model`` as a checkpoint; refuse what the model here would compute otherwise."""
    initialize(seed=config.seed)
    scratch = ctx.run_dir / "unpacked"
    files = open_files(ctx.input("model").path, scratch=scratch)
    tokenizer = ctx.optional_input("tokenizer")
    source = open_source(
        files,
        config,
        run_dir=ctx.run_dir,
        tokenizer_folder=tokenizer.path if tokenizer else None,
    )
    sizes, output = source.padded, ctx.output("model")

    # -- one tensor at a time: a model may be larger than memory
    shapes = full_shapes(sizes)

    def read(name: str) -> Tensor:
        return pad_rows(source.weights.read(name), shapes[name][0]).to(source.dtype)

    copy_model(
        track_reads(read, ctx, total=len(shapes)),
        output.path,
        config=sizes,
        dtype=source.dtype,
        tokenizer=source.tokenizer.path,
    )
    shutil.rmtree(scratch, ignore_errors=True)

    dtype = str(source.dtype).removeprefix("torch.")
    output.note(
        weights_digest=weights_digest(output.path),
        parameters=sum(math.prod(shape) for shape in shapes.values()),
        dtype=dtype,
        **tokenizer_facts(source.tokenizer),
    )
    ctx.summarise(dtype=dtype, vocab_size=sizes.vocab_size, layers=sizes.num_layers)
