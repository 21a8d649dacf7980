"""``convert/megatron_to_hf``: a checkpoint as Hugging Face tools read it, and checked.

Weights are read, cut apart and written one megatron tensor at a time, so files of any size need
the memory of one of them. The check needs more: first this model and then the other is held in
float32. It compares logits with transformers where that is installed, else with a Llama in plain
torch which reads the written files by their own meaning; the record says which it was.

Source: the layout of ``LlamaForCausalLM``. Left out on purpose: pickled weights, and every
architecture but Llama, which the checkpoints here are.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import Tensor

from nemotron_style.runtime.errors import InputError, Problem
from nemotron_style.runtime.step.context import StepContext
from nemotron_style.steps.blocks.checkpoint import torch_dist
from nemotron_style.steps.blocks.checkpoint.conversion import (
    check_logits,
    record,
    sample_logits,
    track,
)
from nemotron_style.steps.blocks.checkpoint.hf_config import CONFIG_FILE, build_settings
from nemotron_style.steps.blocks.checkpoint.hf_weights import (
    EMBEDDING,
    HEAD,
    check_shapes,
    export_weights,
)
from nemotron_style.steps.blocks.checkpoint.logit_parity import round_weights
from nemotron_style.steps.blocks.checkpoint.model_checkpoint import (
    TOKENIZER,
    WEIGHTS,
    full_shapes,
    load_model,
    weights_digest,
)
from nemotron_style.steps.blocks.checkpoint.safetensors_folder import TensorFolder, write_tensors
from nemotron_style.steps.blocks.data.tokenizer import Tokenizer
from nemotron_style.steps.blocks.data.tokenizer_files import check_vocabulary, export_tokenizer
from nemotron_style.steps.blocks.model.parallel import initialize
from nemotron_style.steps.blocks.settings.model_config import ModelConfig
from nemotron_style.steps.convert.megatron_to_hf.config import Config


def run(config: Config, ctx: StepContext) -> None:
    """Write ``model`` as a Hugging Face folder, and refuse it when it computes something else."""
    initialize(seed=config.seed)
    source, output = ctx.input("model").path, ctx.output("model")

    # -- the logits of the checkpoint; loading it finds everything that is wrong with it
    model, stored = load_model(source, ddp=False)
    tokenizer = Tokenizer(source / TOKENIZER)
    check_vocabulary(tokenizer, stored, where=str(source))
    sizes = cut_sizes(config, stored, tokenizer)
    dtype = getattr(torch, config.dtype) if config.dtype else None
    round_weights(model, dtype)
    sample = sample_logits(
        model, config, vocab_size=tokenizer.vocab_size, max_tokens=sizes.max_sequence_length
    )
    del model  # before the other one is loaded

    # -- the files
    whole_tensors = torch_dist.read_full(source / WEIGHTS)
    weights = track(whole_tensors, ctx, total=len(full_shapes(stored)))
    prepared = ((name, prepare(name, whole, sizes, dtype)) for name, whole in weights)
    max_bytes = int(config.max_shard_gigabytes * 1e9)
    write_tensors(output.path, export_weights(prepared, sizes), max_bytes=max_bytes)
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
    if sizes == stored and dtype in (None, torch_type(source / WEIGHTS)):
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


def prepare(name: str, whole: Tensor, sizes: ModelConfig, dtype: torch.dtype | None) -> Tensor:
    """A tensor in the type and with the rows that are written."""
    kept = whole[: sizes.vocab_size] if name in (EMBEDDING, HEAD) else whole
    return kept.to(dtype or kept.dtype)


def torch_type(path: Path) -> torch.dtype:
    """The type of a checkpoint's weights, which is one for all of them."""
    return next(torch_dist.read_full(path))[1].dtype
