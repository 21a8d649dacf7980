"""``convert/megatron_to_hf``: a checkpoint as Hugging Face tools read it, and checked.

Weights are read, cut apart and written one megatron tensor at a time, and both models of the check
run with one tensor at a time, so a checkpoint of any size needs the memory of its largest tensor.
The check compares logits with transformers where that is installed, else with a model in plain
torch which reads the written files by their own meaning; the record says which it was.

Source: the layout of transformers' classes, as the table of families has it. Left out on purpose:
pickled weights.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping

import torch
from torch import Tensor

from nemotron_style.runtime.errors import InputError, Problem
from nemotron_style.runtime.step.context import StepContext
from nemotron_style.steps.blocks.checkpoint.conversion import (
    check_logits,
    record,
    sample_logits,
    track,
)
from nemotron_style.steps.blocks.checkpoint.hf_config import (
    CONFIG_FILE,
    build_settings,
    check_family,
)
from nemotron_style.steps.blocks.checkpoint.hf_weights import (
    EMBEDDING,
    HEAD,
    check_shapes,
    export_weights,
)
from nemotron_style.steps.blocks.checkpoint.model_checkpoint import (
    TOKENIZER,
    WEIGHTS,
    check_checkpoint,
    full_shapes,
    weights_digest,
)
from nemotron_style.steps.blocks.checkpoint.safetensors_folder import TensorFolder, write_tensors
from nemotron_style.steps.blocks.checkpoint.streamed_model import stream_model
from nemotron_style.steps.blocks.checkpoint.torch_dist_stream import WeightFolder
from nemotron_style.steps.blocks.data.tokenizer import Tokenizer
from nemotron_style.steps.blocks.data.tokenizer_files import check_vocabulary, export_tokenizer
from nemotron_style.steps.blocks.model.parallel import initialize
from nemotron_style.steps.blocks.settings.model_config import ModelConfig
from nemotron_style.steps.convert.megatron_to_hf.config import Config


def run(config: Config, ctx: StepContext) -> None:
    """Write ``model`` as a Hugging Face folder, and refuse it when it computes something else."""
    initialize(seed=config.seed)
    source, output = ctx.input("model").path, ctx.output("model")

    # -- the logits of the checkpoint; reading it finds everything that is wrong with it
    stored = check_checkpoint(source)
    check_family(stored)
    weights = WeightFolder(source / WEIGHTS)
    tokenizer = Tokenizer(source / TOKENIZER)
    check_vocabulary(tokenizer, stored, where=str(source))
    sizes = cut_sizes(config, stored, tokenizer)
    dtype = getattr(torch, config.dtype) if config.dtype else weights.dtype
    sample = sample_logits(
        stream_model(stored, lambda name: weights.read(name).to(dtype)),
        config,
        vocab_size=tokenizer.vocab_size,
        max_tokens=sizes.max_sequence_length,
    )

    # -- the files
    def units(pairs: Iterable[tuple[str, Tensor]]) -> Iterator[Mapping[str, Tensor]]:
        prepared = ((name, prepare(name, whole, sizes, dtype)) for name, whole in pairs)
        return export_weights(prepared, sizes)

    whole_tensors = track(weights.weights(), ctx, total=len(full_shapes(stored)))
    max_bytes = int(config.max_shard_gigabytes * 1e9)
    outline = units(weights.outline())
    write_tensors(output.path, units(whole_tensors), max_bytes=max_bytes, outline=outline)
    token_ids = export_tokenizer(tokenizer.path, output.path)
    folder = TensorFolder(output.path)
    check_shapes(folder.shapes, sizes, where=str(output.path))
    [written] = {str(kind).removeprefix("torch.") for kind in folder.types.values()}
    settings = build_settings(sizes, dtype=written, token_ids=token_ids)
    text = json.dumps(settings, indent=2)
    (output.path / CONFIG_FILE).write_text(text + "\n", encoding="utf-8")

    # -- the logits of the files
    parity = check_logits(sample, output.path, config, ctx)
    digest = weights_digest(source)
    output.note(source_weights_digest=digest)
    if sizes == stored and dtype == weights.dtype:
        output.note(weights_digest=digest)  # they are the same weights, bit for bit
    record(ctx, parity, sizes=sizes, dtype=written, tokenizer=tokenizer)
    ctx.summarise(files=len(list(output.path.glob("*.safetensors"))))


def cut_sizes(config: Config, stored: ModelConfig, tokenizer: Tokenizer) -> ModelConfig:
    """The sizes to write: those of the checkpoint, with the vocabulary of the config."""
    rows = stored.vocab_size if config.vocab_size is None else config.vocab_size
    if not tokenizer.vocab_size <= rows <= stored.vocab_size:
        raise InputError(
            Problem(
                key="vocab_size",
                what="the embedding can only be cut between the tokenizer's last id and its end",
                got=str(rows),
                allowed=f"{tokenizer.vocab_size} to {stored.vocab_size}, or null for all rows",
            )
        )
    return stored.model_copy(update={"vocab_size": rows})


def prepare(name: str, whole: Tensor, sizes: ModelConfig, dtype: torch.dtype) -> Tensor:
    """A tensor in the type and with the rows that are written."""
    kept = whole[: sizes.vocab_size] if name in (EMBEDDING, HEAD) else whole
    return kept.to(dtype)
