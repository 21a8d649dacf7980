"""Supervised fine-tuning on conversations, from a checkpoint or from nothing.

From NeMo-Aligner (``train_gpt_sft.py``, ``GPTSFTChatDataset``) it keeps the text of a conversation,
labels before (``VALUE_TO_TEXT``) and after (``TEXT_TO_VALUE``) an answer, and the keys of the
config.  It leaves out, on purpose:

* cutting rows that are too long: they are refused with their lines, left out, or lose whole turns
  at their beginning, as ``long_rows`` says;
* finding the loss mask by tokenising a prompt a second time: prompt and target are tokenised
  apart, so the mask is exact;
* means of means: the loss is the mean over the target tokens of the *global* batch, whatever the
  micro-batches and ranks, so every token counts alike;
* trainer and callbacks: the order of events is the function below.
"""

from __future__ import annotations

from itertools import chain
from pathlib import Path

from nemotron_style.runtime.step.context import StepContext
from nemotron_style.steps.blocks.checkpoint.model_checkpoint import TOKENIZER
from nemotron_style.steps.blocks.data.chat.opening import tokenizer_facts
from nemotron_style.steps.blocks.data.sample_order import SampleOrder
from nemotron_style.steps.blocks.data.tokenizer_files import store_chat
from nemotron_style.steps.blocks.generation.answer_samples import AnswerSamples
from nemotron_style.steps.blocks.model.parallel import Parallel, initialize
from nemotron_style.steps.blocks.stats.metric_plot import copy_logs, draw_metrics
from nemotron_style.steps.blocks.training.loop import Schedule, TrainingLoop
from nemotron_style.steps.blocks.training.lr_schedule import cosine_annealing, warn_if_held
from nemotron_style.steps.blocks.training.microbatch import accumulate_nll, count_tokens
from nemotron_style.steps.blocks.training.optimizer import build_optimizer
from nemotron_style.steps.blocks.training.product import product_of, write_product
from nemotron_style.steps.blocks.training.sample_table import SHOWN, write_loss_mask
from nemotron_style.steps.blocks.training.training_state import TrainingState
from nemotron_style.steps.sft.chat.config import Config
from nemotron_style.steps.sft.chat.initial_model import Start, check_job, prepare_start
from nemotron_style.steps.sft.chat.plot import PANELS
from nemotron_style.steps.sft.chat.row import EncodedRow, encode_rows, row_reader
from nemotron_style.steps.sft.chat.samples import ask_again, name_trained
from nemotron_style.steps.sft.chat.validation import measure_loss


def run(config: Config, ctx: StepContext) -> None:
    """Train on ``data`` and produce ``model``, the weights after the last step, or ``adapter``."""
    # -- where the model starts, and the rows: all of them checked before any work is done
    check_job(config, ctx)
    initialize(Parallel.of(config.model), seed=config.seed)
    start = prepare_start(config, ctx)
    train = read_rows(config, ctx, start=start, slot="data")
    validation = []
    if ctx.optional_input("validation"):
        validation = read_rows(config, ctx, start=start, slot="validation")
        validation = validation[: config.validation_rows(len(validation))]
    sft, train_ds = config.trainer.sft, config.model.data.train_ds
    batch_size = train_ds.global_batch_size
    order = SampleOrder(len(train), config.seed, batch_size, sample=config.model.data.sample)
    steps = order.steps(max_steps=sft.max_steps, max_epochs=sft.max_epochs)
    ctx.say(f"{len(train)} rows to train on, {len(validation)} to validate, {steps} steps")
    warn_if_held(ctx, config.model.optim, updates=steps)

    # a pass holds so many tokens where rows are packed, and else micro_batch_size rows
    limit = start.sizes.max_sequence_length
    pass_tokens = config.tokens_of_pass("data", limit)

    # -- the model and its state
    model = start.build(config, ctx)
    optimizer = build_optimizer(model, config.model.optim, gradient_clip=sft.gradient_clip_val)
    checkpoint = TrainingState(ctx, model, optimizer, start.adaptation and start.adaptation.base)
    done, stored = checkpoint.restore()
    validation_metrics: dict[str, float] = stored.get("figures", {})
    questions = ask_again(chain(validation, train), start.chat)
    table = AnswerSamples.open(ctx, config.trainer.samples, start.chat, start.sizes, questions)
    table.begin(model, done)
    if ctx.is_first:
        shown = [train[at] for at in range(min(len(train), config.trainer.samples.prompts, SHOWN))]
        write_loss_mask(ctx.run_dir, name_trained(shown, start.chat))

    def validate(step: int) -> None:
        losses = measure_loss(
            model,
            validation,
            max_responses=config.validation_micro_batch_size,
            max_tokens=config.tokens_of_pass("validation", limit),
        )
        validation_metrics.update({f"validation_{name}": x for name, x in losses.items()})
        ctx.metrics.log(step, **validation_metrics)
        ctx.say(f"step {step}: validation loss {losses['loss']:.4f}")

    keep = config.exp_manager.checkpoint_callback_params.save_top_k
    loop = TrainingLoop(
        ctx,
        Schedule.of(sft, steps),
        validate=validate if validation else None,
        save=lambda step: checkpoint.save(step, {"figures": validation_metrics}, keep=keep),
    )

    # -- training: one update for each global batch
    for step in loop.steps(done):
        rows = [train[index] for index in order.batch(step - 1)]
        target_tokens = count_tokens(rows)
        # forward and backward over all micro-batches: leaves the gradients of `loss` in the model
        nll = accumulate_nll(
            model, rows, max_responses=train_ds.micro_batch_size, max_tokens=pass_tokens
        )
        loss = nll / target_tokens
        lr = cosine_annealing(config.model.optim, step - 1, updates=steps)
        grad_norm = optimizer.step(lr, step=step, loss=loss)

        rate = loop.rate(sum(map(len, rows)))
        ctx.metrics.log(
            step,
            train_loss=loss,
            lr=lr,
            grad_norm=grad_norm,
            epoch=order.epoch(step - 1),
            target_tokens=target_tokens,
            tokens_per_second=rate,
        )
        ctx.progress(step, steps, loss=loss, grad_norm=grad_norm, tokens_per_second=rate)

    table.finish(model, steps)
    if ctx.is_first:
        draw_metrics(ctx.metrics.history(), PANELS, ctx.run_dir / "plots" / "sft.png")
    tokenizer = start.tokenizer.path
    output = write_product(ctx, model, start.adaptation, sizes=start.sizes, tokenizer=tokenizer)
    if ctx.is_first:
        store_chat(output.path / TOKENIZER, start.chat)
    output.note(**tokenizer_facts(start.tokenizer, start.chat))
    ctx.summarise(**validation_metrics, steps=steps, epochs=steps * batch_size / len(train))
    if ctx.is_first and config.exp_manager.explicit_log_dir:
        copy_logs(ctx.run_dir, Path(config.exp_manager.explicit_log_dir))


def read_rows(config: Config, ctx: StepContext, *, start: Start, slot: str) -> list[EncodedRow]:
    """The rows of an input as tokens. Raises InputError for each that cannot be trained on."""
    limit, reader = start.sizes.max_sequence_length, row_reader(config)
    rows = encode_rows(
        ctx.input(slot).path,
        chat=start.chat,
        train_on=config.model.data.train_on,
        max_tokens=config.longest(slot, limit),
        reader=reader,
    )
    reader.report.tell(ctx, slot, output=product_of(start.adaptation))
    return rows
