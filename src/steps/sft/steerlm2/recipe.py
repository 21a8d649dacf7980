"""SteerLM 2.0 training: raise the responses that fit their label better than the model expects.

From NeMo-Aligner (``train_steerlm2.py``, ``GPTSteerLMModel``) it keeps the row format, the keys of
the config, the loss, the counting of micro-batches in responses, and the distance as what
validation measures and selects by.  It leaves out, on purpose:

* cutting long responses, and finding the loss mask by tokenising a prompt a second time: log Q'
  covers the whole text, so a row is used whole or refused, and prompt and response are tokenised
  apart;
* the first of two passes wherever a group fits one: the log-probabilities that carry the gradient
  give the baseline too;
* trust: the data's sampler is compared with the model, and no weight is updated unless the model
  gives the responses the log-probabilities they were scored with;
* trainer, callbacks and exp_manager: the order of events is the function below.

Shapes: ``_P`` groups, ``_G`` responses of a group.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import torch

from nemotron_style.runtime.step.context import StepContext
from nemotron_style.steps.blocks.checkpoint.model_checkpoint import (
    TOKENIZER,
    read_config,
    recorded_weights_digest,
)
from nemotron_style.steps.blocks.data.chat.interface import Chat
from nemotron_style.steps.blocks.data.chat.opening import open_chat, tokenizer_facts
from nemotron_style.steps.blocks.data.layouts.reader import RowReader
from nemotron_style.steps.blocks.data.sample_order import SampleOrder
from nemotron_style.steps.blocks.data.steerlm2_row import read_groups
from nemotron_style.steps.blocks.data.tokenizer import Tokenizer
from nemotron_style.steps.blocks.data.tokenizer_files import store_chat
from nemotron_style.steps.blocks.generation.answer_samples import AnswerSamples, Question
from nemotron_style.steps.blocks.loss.steerlm2 import baseline
from nemotron_style.steps.blocks.model.parallel import Parallel, initialize
from nemotron_style.steps.blocks.stats.metric_plot import copy_logs
from nemotron_style.steps.blocks.training.launch_check import check_launch
from nemotron_style.steps.blocks.training.loop import Schedule, TrainingLoop
from nemotron_style.steps.blocks.training.lr_schedule import cosine_annealing, warn_if_held
from nemotron_style.steps.blocks.training.optimizer import build_optimizer
from nemotron_style.steps.blocks.training.product import product_of
from nemotron_style.steps.blocks.training.trained_model import Adaptation, load_trained_model
from nemotron_style.steps.blocks.training.training_state import TrainingState
from nemotron_style.steps.sft.steerlm2.batch import Batch, accumulate
from nemotron_style.steps.sft.steerlm2.best_model import BestModel
from nemotron_style.steps.sft.steerlm2.check import check_sampler, check_start, warn_if_few
from nemotron_style.steps.sft.steerlm2.config import Config
from nemotron_style.steps.sft.steerlm2.metrics import GroupMetrics, compute_metrics
from nemotron_style.steps.sft.steerlm2.plot import draw
from nemotron_style.steps.sft.steerlm2.samples import WeightSamples
from nemotron_style.steps.sft.steerlm2.validation import measure


@dataclass
class Selection:
    """The model at the smallest validation distance so far; step 0 is the start."""

    before: GroupMetrics
    best: GroupMetrics
    best_step: int = 0

    @staticmethod
    def restore(stored: dict[str, Any]) -> Selection:
        """The selection that a checkpoint keeps."""
        before, best = GroupMetrics(**stored["before"]), GroupMetrics(**stored["best"])
        return Selection(before, best, int(stored["best_step"]))


def run(config: Config, ctx: StepContext) -> None:
    """Train on ``data`` and produce the model, or adapter, at the smallest validation distance."""
    # -- what is trained, whether the data were made with it, and their rows: all checked first
    check_launch(config.trainer, world_size=ctx.world_size)
    initialize(Parallel.of(config.model), seed=config.seed)
    start = ctx.input("model")
    parent = recorded_weights_digest(start)
    tokenizer = Tokenizer(start.path / TOKENIZER)
    chat = open_chat(tokenizer, config.model.data.chat_prompt_tokens)
    check_sampler(config, ctx, parent)
    adaptation = Adaptation.of(ctx, config.model.peft, seed=config.seed)  # None: all is trained
    output = product_of(adaptation)
    train = read_batch(config, ctx, slot="data", chat=chat, output=output)
    validation = read_batch(config, ctx, slot="validation", chat=chat, output=output)
    validation = validation.take(range(config.validation_rows(len(validation.groups))))
    sft, batch_size = config.trainer.sft, config.model.data.train_ds.global_batch_size
    order = SampleOrder(len(train.groups), config.seed, batch_size, sample=config.model.data.sample)
    steps = order.steps(max_steps=sft.max_steps, max_epochs=sft.max_epochs)
    ctx.say(
        f"{len(train.groups)} groups to train on, {len(validation.groups)} to validate, "
        f"{steps} steps"
    )
    warn_if_held(ctx, config.model.optim, updates=steps)

    # -- the model and its state
    sizes = read_config(start.path)
    model = load_trained_model(
        ctx,
        adaptation,
        dtype=torch.bfloat16 if config.trainer.half else torch.float32,
        optim=config.model.optim,
        activations=config.model.activations,
    )
    optimizer = build_optimizer(model, config.model.optim, gradient_clip=sft.gradient_clip_val)
    checkpoint = TrainingState(ctx, model, optimizer, adaptation and adaptation.base)
    best_model = BestModel(ctx, model, sizes, adaptation, tokenizer.path)
    questions = (Question(group.prompt_ids) for group in chain(validation.groups, train.groups))
    table = AnswerSamples.open(ctx, config.trainer.samples, chat, sizes, questions)
    weights = WeightSamples(ctx.run_dir, validation, chat)

    def validate(step: int) -> GroupMetrics:
        size = config.model.steerlm2.forward_micro_batch_size
        metrics, b_PG = measure(model, validation, max_responses=size)
        ctx.metrics.log(step, **metrics.named("validation"))
        if ctx.is_first:
            weights.keep(step, b_PG)
        ctx.say(
            f"step {step}: validation distance {metrics.distance:.4f}, "
            f"mean drift {metrics.mean_drift:+.3f} nats"
        )
        return metrics

    done, stored = checkpoint.restore()
    if stored:
        selection = Selection.restore(stored)
    else:
        selection = Selection(*[validate(0)] * 2)
        check_start(config, selection.before, "validation rows")
        warn_if_few(config, ctx, selection.before)
        best_model.keep_start()
    table.begin(model, done)

    def select(step: int) -> bool:
        metrics = validate(step)
        if metrics.distance >= selection.best.distance:  # of equals the earlier one stays
            return False
        selection.best, selection.best_step = metrics, step
        table.take(model, step)
        best_model.keep(step)
        return True

    loop = TrainingLoop(
        ctx,
        Schedule.of(sft, steps),
        validate=select,
        save=lambda step: checkpoint.save(
            step,
            asdict(selection),
            keep=config.exp_manager.checkpoint_callback_params.save_top_k,
        ),
    )

    # -- training: one update for each global batch
    for step in loop.steps(done):
        batch = train.take(order.batch(step - 1))
        # forward and backward over all micro-batches: the model then has the gradients of the sum
        # of `loss_PG` over G, its mean over P, with `w` and `b` held fixed
        log_q_theta_PG = accumulate(model, batch, config.model.steerlm2)
        w_PG = batch.w_PG  # softmax over G of log P(a|x,y) + log P(y|x) - log Q'(y|a,x)
        b_PG = baseline(log_q_theta_PG, batch.log_q_PG)  # softmax over G of log Qtheta - log Q'
        loss_PG = (w_PG - b_PG) * batch.nll_PG(log_q_theta_PG)
        metrics = compute_metrics(batch, log_q_theta_PG, b_PG=b_PG, loss_PG=loss_PG)
        if step == 1:
            check_start(config, metrics, "first batch")
        lr = cosine_annealing(config.model.optim, step - 1, updates=steps)
        grad_norm = optimizer.step(lr, step=step, loss=metrics.loss)

        ctx.metrics.log(
            step,
            **metrics.named("train"),
            lr=lr,
            grad_norm=grad_norm,
            epoch=order.epoch(step - 1),
            response_tokens_per_second=loop.rate(int(batch.tokens_PG.sum())),
        )
        shown = {"loss": metrics.loss, "distance": metrics.distance, "grad_norm": grad_norm}
        ctx.progress(step, steps, **shown)

    # -- what is produced: the best model, and how it came to be
    table.write(after=selection.best_step)
    output = best_model.produce(selection.best_step)
    if ctx.is_first:
        store_chat(output.path / TOKENIZER, chat)
        draw(ctx.metrics.history(), ctx.run_dir)
        if config.exp_manager.explicit_log_dir:
            copy_logs(ctx.run_dir, Path(config.exp_manager.explicit_log_dir))
    output.note(
        parent_weights_digest=parent,
        best_step=selection.best_step,
        steps=steps,
        **tokenizer_facts(tokenizer, chat),
    )
    ctx.summarise(
        distance_before=selection.before.distance,
        distance_after=selection.best.distance,
        mean_drift=selection.best.mean_drift,
        effective_sample_size=selection.before.effective_sample_size,
        sampler_gap=selection.before.sampler_gap,
        best_step=selection.best_step,
        steps=steps,
    )


def read_batch(config: Config, ctx: StepContext, *, slot: str, chat: Chat, output: str) -> Batch:
    """All groups of an input. Raises InputError for every row that cannot be trained on."""
    limit = read_config(ctx.input("model").path).max_sequence_length
    rows = RowReader(None, config.model.data, "model.data")
    path, max_tokens = ctx.input(slot).path, config.longest(limit)
    groups = read_groups(path, chat=chat, max_tokens=max_tokens, reader=rows)
    rows.report.tell(ctx, slot, output=output)
    return Batch.of(groups)
