"""Supervised fine-tuning on conversations, from a checkpoint or from nothing.

From NeMo-Aligner (``train_gpt_sft.py``, ``GPTSFTChatDataset``) it keeps the text of a conversation,
labels before (``VALUE_TO_TEXT``) and after (``TEXT_TO_VALUE``) an answer, and the keys of the
config.  It leaves out, on purpose:

* cutting rows that are too long: they are refused, with their lines;
* finding the loss mask by tokenising a prompt a second time: prompt and target are tokenised
  apart, so the mask is exact;
* means of means: the loss is the mean over the target tokens of the *global* batch, whatever the
  micro-batches and ranks, so every token counts alike;
* loss on every assistant turn: the last answer of a row is its target, so a conversation with
  several answers becomes several rows;
* trainer and callbacks: the order of events is the function below.

Shapes: ``_B`` rows, ``_N`` answers of a row (one), ``_R`` target tokens.
"""

from __future__ import annotations

import math
import time

import torch.distributed as dist

from nemotron_style.runtime.errors import Interrupted
from nemotron_style.runtime.step.context import StepContext
from nemotron_style.steps.blocks.checkpoint.model_checkpoint import (
    full_shapes,
    save_model,
    weights_digest,
)
from nemotron_style.steps.blocks.data.sample_order import SampleOrder
from nemotron_style.steps.blocks.data.tokenizer import tokenizer_facts
from nemotron_style.steps.blocks.model.parallel import Parallel, any_rank, initialize
from nemotron_style.steps.blocks.training.launch_check import is_due
from nemotron_style.steps.blocks.training.lr_schedule import cosine_annealing
from nemotron_style.steps.blocks.training.optimizer import build_optimizer
from nemotron_style.steps.blocks.training.training_state import load_state, save_state
from nemotron_style.steps.sft.chat.batch import accumulate, measure
from nemotron_style.steps.sft.chat.config import Config
from nemotron_style.steps.sft.chat.initial_model import check_job, prepare_start
from nemotron_style.steps.sft.chat.row import EncodedRow, count_targets, encode_rows


def run(config: Config, ctx: StepContext) -> None:
    """Train on ``data`` and produce ``model``, the weights after the last step."""
    # -- where the model comes from, and its words
    check_job(config, ctx)
    tensor, pipeline = (
        config.model.tensor_model_parallel_size,
        config.model.pipeline_model_parallel_size,
    )
    initialize(Parallel(tensor, pipeline), seed=config.seed)
    start = prepare_start(config, ctx)
    data, sft = config.model.data, config.trainer.sft

    # -- the rows: all of them checked before any work is done
    def rows(slot: str) -> list[EncodedRow]:
        room, wanted = start.sizes.max_sequence_length, data.train_ds.max_seq_length
        return encode_rows(
            ctx.input(slot).path,
            tokenizer=start.tokenizer,
            chat=start.chat,
            max_tokens=min(room, wanted or room),
        )

    train = rows("data")
    validation = rows("validation") if ctx.optional_input("validation") else []
    validation = validation[: config.validation_rows(len(validation))]
    batch_size = data.train_ds.global_batch_size
    order = SampleOrder(len(train), config.seed, batch_size, sample=data.sample)
    steps = order.steps(max_steps=sft.max_steps, max_epochs=sft.max_epochs)
    ctx.say(f"{len(train)} rows to train on, {len(validation)} to validate, {steps} steps")

    # -- the model and its state
    model = start.build(config)
    optimizer = build_optimizer(model, config.model.optim, gradient_clip=sft.gradient_clip_val)

    def validate(step: int) -> dict[str, float]:
        figures = measure(model, validation, size=config.validation_micro_batch_size)
        named = {f"validation_{name}": value for name, value in figures.items()}
        ctx.metrics.log(step, **named)
        ctx.say(f"step {step}: validation loss {figures['loss']:.4f}")
        return named

    def save(step: int) -> None:
        save_state(ctx.checkpoints.stage(step), model, optimizer, extra={"figures": figures})
        dist.barrier()
        ctx.checkpoints.commit(step)
        dist.barrier()

    done, figures = 0, {}
    newest = ctx.checkpoints.newest()
    if newest:
        figures = load_state(newest.path, model, optimizer)["figures"]
        done = newest.step
        ctx.say(f"continuing after step {done}")
    ctx.metrics.rewind(done if newest else -1)

    # -- training: one update for each global batch
    tokens_seen, clock = 0, time.monotonic()
    for step in range(done + 1, steps + 1):
        batch = [train[place] for place in order.batch(step - 1)]
        loss = accumulate(model, batch, size=data.train_ds.micro_batch_size)
        lr = cosine_annealing(config.model.optim, step - 1, updates=steps)
        grad_norm = optimizer.step(lr)

        tokens_seen += sum(map(len, batch))
        rate = tokens_seen / (time.monotonic() - clock)
        ctx.metrics.log(
            step,
            train_loss=loss,
            lr=lr,
            grad_norm=grad_norm,
            epoch=order.epoch(step - 1),
            target_tokens=count_targets(batch),
            tokens_per_second=rate,
        )
        ctx.progress(step, steps, loss=loss, grad_norm=grad_norm, tokens_per_second=rate)

        if validation and is_due(step, sft.val_check_interval, last=steps):
            figures = validate(step)
        stopping = any_rank(ctx.stopping) and step < steps
        if stopping or is_due(step, config.trainer.sft.steps_between_saves, last=steps):
            save(step)
        if stopping:
            raise Interrupted(f"stopped after step {step} of {steps}; the same command continues")

    # -- what is produced: the model with its words, and what tells it from any other
    output = ctx.output("model")
    save_model(model, output.path, config=start.sizes, tokenizer=start.tokenizer.path)
    output.note(
        weights_digest=weights_digest(model),
        parameters=sum(math.prod(shape) for shape in full_shapes(start.sizes).values()),
        **tokenizer_facts(start.tokenizer, start.chat),
    )
    ctx.summarise(**figures, steps=steps, epochs=steps * batch_size / len(train))
