"""``convert/merge_lora``: an adapter becomes a part of the weights of its base, and is checked.

The base is read, added to and written one tensor at a time, in float32, and rounded once to the
type that is written. Each layer gets ``W + scale * B @ A``. The sum is a model like any other: it
is sampled, trained and exported without the adapter.

The adapter is one that a training here made, whose base is known by its digest, or one of peft,
of which shapes alone can be compared.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nemotron_style.runtime.errors import InputError, raise_all
from nemotron_style.runtime.step.context import StepContext
from nemotron_style.steps.blocks.checkpoint.conversion import (
    LogitSample,
    record,
    sample_logits,
    track_reads,
)
from nemotron_style.steps.blocks.checkpoint.families.adapters import LayerAdapter
from nemotron_style.steps.blocks.checkpoint.logit_parity import LogitParity, model_logits
from nemotron_style.steps.blocks.checkpoint.lora_folder import LoraFolder, read_lora
from nemotron_style.steps.blocks.checkpoint.model_checkpoint import (
    TOKENIZER,
    WEIGHTS,
    check_checkpoint,
    copy_model,
    full_shapes,
    recorded_weights_digest,
    weights_digest,
)
from nemotron_style.steps.blocks.checkpoint.streamed_model import stream_model
from nemotron_style.steps.blocks.checkpoint.torch_dist_stream import WeightFolder
from nemotron_style.steps.blocks.data.tokenizer import Tokenizer
from nemotron_style.steps.blocks.data.tokenizer_files import check_vocabulary, import_tokenizer
from nemotron_style.steps.blocks.model.parallel import initialize
from nemotron_style.steps.blocks.settings.peft_config import FOREIGN, check_adapter_base
from nemotron_style.steps.convert.merge_lora.config import Config

Hook = Callable[[nn.Module, tuple[Tensor, ...], tuple[Tensor, None]], tuple[Tensor, None]]
BASE_AND_ADAPTER = "the base with the adapter beside its layers"


def run(config: Config, ctx: StepContext) -> None:
    """Write ``model`` with ``adapter`` in it, and refuse it when it computes something else."""
    initialize(seed=config.seed)
    base, output = ctx.input("model"), ctx.output("model")
    sizes = check_checkpoint(base.path)
    digest = recorded_weights_digest(base)
    folder = ctx.input("adapter").path
    raise_all(InputError, check_adapter_base(folder, digest=digest, sizes=sizes, model=base.ref))
    adapter = read_lora(folder, sizes)
    if adapter.base is None:
        ctx.say(FOREIGN)
    tokenizer = choose_tokenizer(adapter, base.path / TOKENIZER, ctx)
    check_vocabulary(tokenizer, sizes, where=str(folder))

    # -- the sum, one tensor at a time
    weights = WeightFolder(base.path / WEIGHTS)
    dtype = getattr(torch, config.dtype) if config.dtype else weights.dtype

    def add(name: str) -> Tensor:
        whole = weights.read(name)
        layer = adapter.adapters.get(name.removesuffix(".weight"))
        return whole if layer is None else whole.float() + layer.delta

    read = track_reads(lambda name: add(name).to(dtype), ctx, total=len(full_shapes(sizes)))
    copy_model(read, output.path, config=sizes, dtype=dtype, tokenizer=tokenizer.path)

    # -- the logits of the sum against those of base and adapter
    model = stream_model(sizes, weights.read)
    put_beside(model, adapter)
    known = min(tokenizer.vocab_size, sizes.vocab_size)
    sample = sample_logits(model, config, vocab_size=known, max_tokens=sizes.max_sequence_length)
    written = stream_model(sizes, WeightFolder(output.path / WEIGHTS).read)
    rounded = compare(written, sample)
    # What was rounded to 16 bits differs by that; the sum itself must not.
    exact = rounded if dtype == torch.float32 else compare(stream_model(sizes, add), sample)
    ctx.say(f"logits differ by {exact.max_logit_difference:.2e} at most from {exact.by}")
    exact.require(config.max_logit_difference, where=str(output.path))

    output.note(
        weights_digest=weights_digest(output.path),
        parent_weights_digest=digest,
        adapter_rank=adapter.config.rank,
        adapter_base="recorded" if adapter.base else "not recorded",
        tokenizer_of="adapter" if adapter.tokenizer else "model",
        rounded_logit_difference=rounded.max_logit_difference,
    )
    kind = str(dtype).removeprefix("torch.")
    record(ctx, exact, sizes=sizes, dtype=kind, tokenizer=tokenizer)
    ctx.summarise(adapted_layers=len(adapter.adapters))


def choose_tokenizer(adapter: LoraFolder, of_base: Path, ctx: StepContext) -> Tokenizer:
    """The tokenizer that the adapter was trained with, or that of the base where it has none."""
    if adapter.tokenizer is None:
        return Tokenizer(of_base)
    if adapter.tokenizer.name == TOKENIZER:
        return Tokenizer(adapter.tokenizer)
    return import_tokenizer(adapter.tokenizer, ctx.run_dir / TOKENIZER, tokens=None)


def put_beside(model: nn.Module, adapter: LoraFolder) -> None:
    """Have each adapted layer of ``model`` add ``scale * B @ A @ x`` to what it computes."""
    for name, module in model.named_modules():
        if layer := adapter.adapters.get(name):
            module.register_forward_hook(adding(layer))


def adding(layer: LayerAdapter) -> Hook:
    """The hook of a layer that adds its adapter, in the type in which the model computes."""

    def add(
        _: nn.Module, given: tuple[Tensor, ...], product: tuple[Tensor, None]
    ) -> tuple[Tensor, None]:
        states = given[0]
        lora_A, lora_B = (part.to(states) for part in layer[:2])
        return product[0] + layer.scale * F.linear(F.linear(states, lora_A), lora_B), None

    return add


def compare(model: nn.Module, sample: LogitSample) -> LogitParity:
    """How far the logits of ``model`` are from those of the base with the adapter."""
    logits = model_logits(model, sample.tokens_BS)
    difference = float((logits - sample.logits).abs().max())
    rows, tokens = sample.tokens_BS.shape
    largest = float(sample.logits.abs().max())
    return LogitParity(BASE_AND_ADAPTER, rows, tokens, difference, largest)
