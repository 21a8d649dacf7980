"""``reward/regression``: train a model that says what an answer is worth.

From NeMo-Aligner (``train_reward_model.py``, ``MegatronGPTRegressionRewardModel`` and
``MegatronGPTRewardModel``) it keeps the linear head in float32 on the last token, the mean squared
error over the attributes that a row rates, the log-sigmoid of the difference for pairs, and the
keys of the config.  It leaves out, on purpose:

* ratings as they stand: targets are standardised, so that an attribute counts by what it tells
  and not by its unit; the scale travels with the model;
* means of means: each mean is over the *global* batch, whatever the micro-batches and ranks;
* cutting what is too long, which would move the last token: such rows are refused, with lines;
* average pooling and outputs for a whole sequence.

Shapes: ``_C`` conversations of a batch, ``_K`` attributes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from nemotron_style.runtime.step.context import StepContext
from nemotron_style.steps.blocks.checkpoint.model_checkpoint import (
    TOKENIZER,
    full_shapes,
    read_config,
)
from nemotron_style.steps.blocks.data.chat.interface import Chat
from nemotron_style.steps.blocks.data.chat.opening import open_chat, tokenizer_facts
from nemotron_style.steps.blocks.data.layouts.reader import RowReader
from nemotron_style.steps.blocks.data.sample_order import SampleOrder
from nemotron_style.steps.blocks.data.tokenizer import Tokenizer
from nemotron_style.steps.blocks.data.tokenizer_files import store_chat
from nemotron_style.steps.blocks.model.parallel import Parallel, initialize
from nemotron_style.steps.blocks.reward.config import RewardConfig
from nemotron_style.steps.blocks.reward.regression_model import load_trunk
from nemotron_style.steps.blocks.settings.model_config import ModelConfig
from nemotron_style.steps.blocks.stats.metric_plot import copy_logs, draw_metrics
from nemotron_style.steps.blocks.training.launch_check import check_launch
from nemotron_style.steps.blocks.training.loop import Schedule, TrainingLoop
from nemotron_style.steps.blocks.training.lr_schedule import cosine_annealing, warn_if_held
from nemotron_style.steps.blocks.training.optimizer import build_optimizer
from nemotron_style.steps.blocks.training.training_state import TrainingState
from nemotron_style.steps.reward.regression.artifact import (
    choose_padding,
    merge_outputs,
    write_settings,
    write_tokenizer,
    write_weights,
)
from nemotron_style.steps.reward.regression.batch import (
    Targets,
    accumulate,
    mean_squared_error,
    ranking_loss,
)
from nemotron_style.steps.reward.regression.config import Config
from nemotron_style.steps.reward.regression.plot import PANELS, draw
from nemotron_style.steps.reward.regression.row import (
    EncodedRow,
    RatedReader,
    name_outputs,
    scale_outputs,
    weigh_outputs,
)
from nemotron_style.steps.reward.regression.samples import RatedSamples
from nemotron_style.steps.reward.regression.validation import measure


def run(config: Config, ctx: StepContext) -> None:
    """Train on ``data`` and produce ``model``: trunk, head and the scale of its outputs."""
    # -- where the model starts, and the rows: all of them checked before any work is done
    check_launch(config.trainer, world_size=ctx.world_size)
    rm = config.trainer.rm
    initialize(Parallel.of(config.model), seed=config.seed)
    start = ctx.input("model").path
    tokenizer = Tokenizer(start / TOKENIZER)
    chat = open_chat(tokenizer, config.model.data.chat_prompt_tokens)
    data = read_data(config, ctx, chat=chat)
    train, validation, reward = data.train, data.validation, data.reward
    batch_size, size = config.model.global_batch_size, config.model.micro_batch_size
    order = SampleOrder(len(train), config.seed, batch_size, sample=config.model.data.sample)
    steps = order.steps(max_steps=rm.max_steps, max_epochs=rm.max_epochs)
    ctx.say(f"{len(train)} rows to train on, {len(validation)} to validate, {steps} steps")
    warn_if_held(ctx, config.model.optim, updates=steps)
    ctx.say(f"outputs: {', '.join(reward.outputs)}")

    # -- the model and its state
    model, sizes = load_trunk(
        start,
        outputs=len(reward.outputs),
        dtype=torch.bfloat16 if config.trainer.half else torch.float32,
        distributed_optimizer=config.model.optim.distributed,
        activations=config.model.activations,
    )
    optimizer = build_optimizer(model, config.model.optim, gradient_clip=rm.gradient_clip_val)
    checkpoint = TrainingState(ctx, model, optimizer)
    done, stored = checkpoint.restore()
    validation_metrics: dict[str, float] = stored.get("figures", {})
    shown = (validation or train)[: config.trainer.samples.prompts]
    table = RatedSamples(ctx, chat, shown, reward, size)
    if not done:
        table.take(model, 0)

    def validate(step: int) -> None:
        metrics, points = measure(model, validation, config=reward, size=size)
        validation_metrics.update({f"validation_{name}": x for name, x in metrics.items()})
        ctx.metrics.log(step, **validation_metrics)
        accuracy = [f"{name} {value:.3f}" for name, value in metrics.items() if "accuracy" in name]
        ctx.say(f"step {step}: validation {', '.join(accuracy)}")
        if step == steps and ctx.is_first:
            draw(points, ctx.run_dir)

    keep = config.exp_manager.checkpoint_callback_params.save_top_k
    loop = TrainingLoop(
        ctx,
        Schedule.of(rm, steps),
        validate=validate if validation else None,
        save=lambda step: checkpoint.save(step, {"figures": validation_metrics}, keep=keep),
    )

    # -- training: one update for each global batch
    for step in loop.steps(done):
        rows = [train[index] for index in order.batch(step - 1)]
        target = Targets.of(rows, reward)
        # forward and backward over all micro-batches: leaves the gradients of `loss` in the model
        prediction_CK = accumulate(model, rows, config=reward, size=size)
        mse = mean_squared_error(prediction_CK, target, over=target)
        ranking = ranking_loss(prediction_CK, target, config=reward, over=target)
        loss = mse + ranking
        lr = cosine_annealing(config.model.optim, step - 1, updates=steps)
        grad_norm = optimizer.step(lr, step=step, loss=float(loss))

        parts = {"train_regression_loss": mse} if target.ratings_K.any() else {}
        parts |= {"train_pair_loss": ranking} if target.pairs else {}
        rate = loop.rate(sum(map(len, rows)))
        ctx.metrics.log(
            step,
            train_loss=loss,
            **parts,
            lr=lr,
            grad_norm=grad_norm,
            epoch=order.epoch(step - 1),
            tokens_per_second=rate,
        )
        ctx.progress(step, steps, loss=loss, grad_norm=grad_norm, tokens_per_second=rate)

    table.take(model, steps)
    table.write(after=steps)
    if ctx.is_first:
        draw_metrics(ctx.metrics.history(), PANELS, ctx.run_dir / "plots" / "loss.png")
    write_model(config, ctx, model=model, sizes=sizes, reward=reward, chat=chat)
    ctx.output("model").note(**tokenizer_facts(tokenizer, chat))
    ctx.summarise(**validation_metrics, steps=steps, epochs=steps * batch_size / len(train))
    if ctx.is_first and config.exp_manager.explicit_log_dir:
        copy_logs(ctx.run_dir, Path(config.exp_manager.explicit_log_dir))


@dataclass(frozen=True)
class Data:
    """Rows to train on and to validate, and how the model's outputs are named and scaled."""

    train: list[EncodedRow]
    validation: list[EncodedRow]
    reward: RewardConfig


def read_data(config: Config, ctx: StepContext, *, chat: Chat) -> Data:
    """Both files as tokens. Raises InputError for every row that cannot be trained on."""
    limit = read_config(ctx.input("model").path).max_sequence_length
    max_tokens = min(limit, config.model.data.seq_length or limit)
    rows = RowReader("ratings", config.model.data, "model.data")
    reader = RatedReader(config, chat, max_tokens, rows)
    path, regression = ctx.input("data").path, config.model.regression
    train = reader.read(path, regression.attributes)
    rows.report.tell(ctx, "data", output="model")
    names = name_outputs(train, regression)
    reward = RewardConfig(
        outputs=names,
        weights=weigh_outputs(names, regression),
        scale=scale_outputs(train, names, where=path),
        max_sequence_length=max_tokens,
        chat=chat.tokens,
    )
    validation: list[EncodedRow] = []
    if ctx.optional_input("validation"):
        path = ctx.input("validation").path
        validation = reader.read(path, names)
        rows.report.tell(ctx, "validation", output="model")
        validation = validation[: config.validation_rows(len(validation))]
    return Data(train, validation, reward)


def write_model(
    config: Config,
    ctx: StepContext,
    *,
    model: nn.Module,
    sizes: ModelConfig,
    reward: RewardConfig,
    chat: Chat,
) -> None:
    """Write the model as Hugging Face reads it, with the scale of its outputs."""
    output, mix = ctx.output("model"), None
    if config.model.regression.merge_attributes:
        reward, mix = merge_outputs(reward)
    digest = write_weights(model, output.path, sizes=sizes, mix=mix)
    if ctx.is_first:
        tokenizer = ctx.input("model").path / TOKENIZER
        ids = write_tokenizer(tokenizer, output.path, pad_token=choose_padding(chat))
        store_chat(output.path, chat)
        dtype = "bfloat16" if config.trainer.half else "float32"
        write_settings(output.path, sizes=sizes, config=reward, dtype=dtype, token_ids=ids)
    trunk = sum(math.prod(shape) for shape in full_shapes(sizes).values())
    output.note(
        weights_digest=digest,
        outputs=list(reward.outputs),
        weights=reward.weights,
        # the head stands in place of the output layer
        parameters=trunk + (len(reward.outputs) - sizes.vocab_size) * sizes.hidden_size,
    )
