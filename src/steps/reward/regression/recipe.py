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

Shapes: ``_C`` conversations, ``_K`` attributes.
"""

from __future__ import annotations

import math
import time

import torch
import torch.distributed as dist

from nemotron_style.runtime.errors import InputError, Interrupted, raise_all
from nemotron_style.runtime.step.context import StepContext
from nemotron_style.steps.blocks.checkpoint.model_checkpoint import (
    TOKENIZER,
    full_shapes,
    read_config,
    weights_digest,
)
from nemotron_style.steps.blocks.data.sample_order import SampleOrder
from nemotron_style.steps.blocks.data.tokenizer import Tokenizer, open_chat, tokenizer_facts
from nemotron_style.steps.blocks.model.parallel import Parallel, any_rank, initialize
from nemotron_style.steps.blocks.reward.config import RewardConfig
from nemotron_style.steps.blocks.reward.regression_model import load_trunk
from nemotron_style.steps.blocks.training.launch_check import find_disagreements, is_due
from nemotron_style.steps.blocks.training.lr_schedule import cosine_annealing
from nemotron_style.steps.blocks.training.optimizer import build_optimizer
from nemotron_style.steps.blocks.training.training_state import load_state, save_state
from nemotron_style.steps.reward.regression import plot
from nemotron_style.steps.reward.regression.artifact import (
    merge_outputs,
    write_settings,
    write_tokenizer,
    write_weights,
)
from nemotron_style.steps.reward.regression.batch import accumulate, predict
from nemotron_style.steps.reward.regression.config import Config
from nemotron_style.steps.reward.regression.metrics import figures_of, points_of, rate_all
from nemotron_style.steps.reward.regression.row import (
    encode_rows,
    encoder,
    name_outputs,
    scale_outputs,
    weigh_outputs,
)


def run(config: Config, ctx: StepContext) -> None:
    """Train on ``data`` and produce ``model``: trunk, head and the scale of its outputs."""
    # -- where the model comes from, and its words
    raise_all(InputError, find_disagreements(config.trainer, world_size=ctx.world_size))
    settings, rm = config.model, config.trainer.rm
    division = Parallel(settings.tensor_model_parallel_size, settings.pipeline_model_parallel_size)
    initialize(division, seed=config.seed)
    source = ctx.input("model").path
    tokenizer = Tokenizer(source / TOKENIZER)
    chat = open_chat(tokenizer, settings.data.chat_prompt_tokens)
    room = read_config(source).max_sequence_length
    encode = encoder(tokenizer, chat, max_tokens=min(room, settings.data.seq_length or room))

    # -- the rows: all of them checked before any work is done
    given, regression = ctx.input("data").path, settings.regression
    train = encode_rows(given, config=config, encode=encode, names=regression.attributes)
    names = name_outputs(train, regression)
    reward = RewardConfig(
        outputs=names,
        weights=weigh_outputs(names, regression),
        scale=scale_outputs(train, names, where=given),
        max_sequence_length=min(room, settings.data.seq_length or room),
        chat=chat.tokens,
    )
    validation = []
    if ctx.optional_input("validation"):
        held = ctx.input("validation").path
        validation = encode_rows(held, config=config, encode=encode, names=names)
        validation = validation[: config.validation_rows(len(validation))]
    order = SampleOrder(
        len(train), config.seed, settings.global_batch_size, sample=settings.data.sample
    )
    steps = order.steps(max_steps=rm.max_steps, max_epochs=rm.max_epochs)
    ctx.say(f"{len(train)} rows to train on, {len(validation)} to validate, {steps} steps")
    ctx.say(f"outputs: {', '.join(names)}")

    # -- the model and its state
    half = torch.bfloat16 if config.trainer.half else torch.float32
    spread = settings.optim.name == "distributed_fused_adam" and torch.cuda.is_available()
    model, sizes = load_trunk(source, outputs=len(names), dtype=half, distributed_optimizer=spread)
    optimizer = build_optimizer(model, settings.optim, gradient_clip=rm.gradient_clip_val)

    def validate(step: int) -> dict[str, float]:
        found = rate_all(
            predict(model, validation, outputs=len(names), size=settings.micro_batch_size), reward
        )
        figures = figures_of(validation, found, reward)
        named = {f"validation_{name}": value for name, value in figures.items()}
        ctx.metrics.log(step, **named)
        told = [f"{name} {value:.3f}" for name, value in figures.items() if "accuracy" in name]
        ctx.say(f"step {step}: validation {', '.join(told)}")
        if step == steps and ctx.is_first:
            plot.draw(points_of(validation, found, names), ctx.run_dir)
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
        losses = accumulate(model, batch, config=reward, size=settings.micro_batch_size)
        lr = cosine_annealing(settings.optim, step - 1, updates=steps)
        grad_norm = optimizer.step(lr)

        tokens_seen += sum(map(len, batch))
        rate = tokens_seen / (time.monotonic() - clock)
        ctx.metrics.log(
            step,
            **{f"train_{name}": value for name, value in losses.items()},
            lr=lr,
            grad_norm=grad_norm,
            epoch=order.epoch(step - 1),
            tokens_per_second=rate,
        )
        ctx.progress(step, steps, loss=losses["loss"], grad_norm=grad_norm, tokens_per_second=rate)

        if validation and is_due(step, rm.val_check_interval, last=steps):
            figures = validate(step)
        stopping = any_rank(ctx.stopping) and step < steps
        if stopping or is_due(step, rm.save_interval, last=steps):
            save(step)
        if stopping:
            raise Interrupted(f"stopped after step {step} of {steps}; the same command continues")

    # -- what is produced: the model as Hugging Face reads it, with the scale of its outputs
    output = ctx.output("model")
    told, mix = merge_outputs(reward) if regression.merge_attributes else (reward, None)
    write_weights(model, output.path, sizes=sizes, mix=mix)
    if ctx.is_first:
        ids = write_tokenizer(tokenizer.path, output.path, pad_token=chat.tokens.label_start)
        dtype = str(half).removeprefix("torch.")
        write_settings(output.path, sizes=sizes, config=told, dtype=dtype, token_ids=ids)
    output.note(
        weights_digest=weights_digest(model),
        outputs=list(told.outputs),
        weights=told.weights,
        parameters=sum(math.prod(shape) for shape in full_shapes(sizes).values())
        + (len(told.outputs) - sizes.vocab_size) * sizes.hidden_size,
        **tokenizer_facts(tokenizer, chat),
    )
    ctx.summarise(**figures, steps=steps, epochs=steps * settings.global_batch_size / len(train))
