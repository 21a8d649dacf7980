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

import shutil
import time
from dataclasses import asdict
from pathlib import Path

import torch
import torch.distributed as dist

from nemotron_style.runtime.errors import Interrupted, StepFailed
from nemotron_style.runtime.step.context import StepContext
from nemotron_style.steps.blocks.checkpoint.model_checkpoint import (
    CONFIG,
    TOKENIZER,
    WEIGHTS,
    load_model,
    read_config,
    save_model,
    weights_digest,
)
from nemotron_style.steps.blocks.data.sample_order import SampleOrder
from nemotron_style.steps.blocks.data.steerlm2_row import EncodedGroup, read_groups
from nemotron_style.steps.blocks.data.tokenizer import Tokenizer, open_chat, tokenizer_facts
from nemotron_style.steps.blocks.model.device import prepare_device
from nemotron_style.steps.blocks.model.parallel import Parallel, any_rank, initialize
from nemotron_style.steps.blocks.training.lr_schedule import cosine_annealing
from nemotron_style.steps.blocks.training.metric_plot import copy_logs
from nemotron_style.steps.blocks.training.optimizer import build_optimizer
from nemotron_style.steps.blocks.training.training_state import load_state, save_state
from nemotron_style.steps.sft.steerlm2.batch import (
    Figures,
    Sizes,
    Table,
    accumulate,
    figures_of,
    measure,
)
from nemotron_style.steps.sft.steerlm2.check import (
    check_machine,
    check_sampler,
    check_start,
    warn_if_few,
)
from nemotron_style.steps.sft.steerlm2.config import Config
from nemotron_style.steps.sft.steerlm2.plot import draw


def run(config: Config, ctx: StepContext) -> None:
    """Train ``model`` on ``data`` and produce the model at the smallest validation distance."""
    # -- what is trained, and whether it is what the data was made with
    device = prepare_device()
    check_machine(config, ctx, device)
    parallel = Parallel(
        tensor=config.model.tensor_model_parallel_size,
        pipeline=config.model.pipeline_model_parallel_size,
    )
    initialize(parallel, seed=config.seed)
    start = ctx.input("model")
    parent = str(start.facts.get("weights_digest") or weights_digest(start.path))
    tokenizer = Tokenizer(start.path / TOKENIZER)
    chat = open_chat(tokenizer, config.model.data.chat_prompt_tokens)
    check_sampler(config, ctx, parent)

    # -- the rows: all of them checked before any work is done
    def rows(slot: str) -> list[EncodedGroup]:
        return read_groups(
            ctx.input(slot).path,
            chat=chat,
            encode=lambda text: tokenizer.encode(text, control=True),
            max_tokens=config.longest(read_config(start.path).max_sequence_length),
        )

    train, validation = rows("data"), rows("validation")
    validation = validation[: config.validation_rows(len(validation))]
    train_table, validation_table = Table.of(train, device), Table.of(validation, device)
    sft, data = config.trainer.sft, config.model.data
    batch_size = data.train_ds.global_batch_size
    order = SampleOrder(len(train), config.seed, batch_size, sample=data.sample)
    steps = order.steps(max_steps=sft.max_steps, max_epochs=sft.max_epochs)
    ctx.say(f"{len(train)} groups to train on, {len(validation)} to validate, {steps} steps")

    # -- the model and its state
    model, sizes = load_model(
        start.path,
        dtype=torch.bfloat16 if config.trainer.half else torch.float32,
        distributed_optimizer=config.model.optim.name == "distributed_fused_adam",
    )
    optimizer = build_optimizer(model, config.model.optim, gradient_clip=sft.gradient_clip_val)
    passes = Sizes(
        config.model.steerlm2.micro_batch_size, config.model.steerlm2.forward_micro_batch_size
    )
    keep = config.exp_manager.checkpoint_callback_params.save_top_k
    best_models = ctx.checkpoints.beside("best")

    def validate(step: int) -> Figures:
        log_q_theta_PG = measure(
            model, validation, validation_table, size=passes.forward_micro_batch_size
        )
        figures = figures_of(validation_table, log_q_theta_PG)
        ctx.metrics.log(step, **named("validation", figures))
        ctx.say(
            f"step {step}: validation distance {figures.distance:.4f}, "
            f"mean drift {figures.mean_drift:+.3f} nats"
        )
        return figures

    def save(step: int) -> None:
        save_state(
            ctx.checkpoints.stage(step),
            model,
            optimizer,
            extra={"best_step": best_step, "best": asdict(best), "before": asdict(before)},
        )
        ctx.checkpoints.commit(step, keep=keep)
        dist.barrier()

    def save_best(step: int) -> None:
        save_model(model, best_models.stage(step), config=sizes, tokenizer=start.path / TOKENIZER)
        dist.barrier()
        best_models.commit(step)  # keeps two: the state saved last may still name the one before
        dist.barrier()

    newest = ctx.checkpoints.newest()
    if newest is None:
        done, best_step = 0, 0
        ctx.metrics.rewind(-1)
        before = best = validate(0)
        check_start(config, before, "validation rows")
        warn_if_few(config, ctx, before)
    else:
        extra = load_state(newest.path, model, optimizer)
        done, best_step = newest.step, int(extra["best_step"])
        before, best = Figures(**extra["before"]), Figures(**extra["best"])
        ctx.metrics.rewind(done)
        ctx.say(f"continuing after step {done}")

    # -- training: one update for each global batch
    tokens_seen, clock = 0, time.monotonic()
    for step in range(done + 1, steps + 1):
        places = order.batch(step - 1)
        table = train_table.rows(places)
        log_q_theta_PG = accumulate(model, [train[place] for place in places], table, sizes=passes)
        figures = figures_of(table, log_q_theta_PG)
        if step == 1:
            check_start(config, figures, "first batch")
        lr = cosine_annealing(config.model.optim, step - 1, updates=steps)
        grad_norm = optimizer.step(lr)

        tokens_seen += int(table.token_counts.sum().item())
        rate = tokens_seen / (time.monotonic() - clock)
        ctx.metrics.log(
            step,
            **named("train", figures),
            lr=lr,
            grad_norm=grad_norm,
            epoch=order.epoch(step - 1),
            response_tokens_per_second=rate,
        )
        ctx.progress(step, steps, loss=figures.loss, distance=figures.distance, grad_norm=grad_norm)

        found_better = False
        if step == steps or (sft.val_check_interval and step % sft.val_check_interval == 0):
            now = validate(step)
            found_better = now.distance < best.distance  # of equals the earlier one stays
            if found_better:
                best, best_step = now, step
                save_best(step)
        stopping = any_rank(ctx.stopping) and step < steps
        due = (
            config.trainer.sft.steps_between_saves
            and step % config.trainer.sft.steps_between_saves == 0
        )
        if found_better or due or stopping or step == steps:
            save(step)
        if stopping:
            raise Interrupted(f"stopped after step {step} of {steps}; the same command continues")

    # -- what is produced: the best model, and how it came to be
    chosen = best_models.at(best_step)  # None: no step was better than the start
    if best_step and chosen is None:
        raise StepFailed(f"the kept model of step {best_step} is damaged; run again with --fresh")
    output = ctx.output("model")
    if ctx.rank == 0:
        copy_model(chosen.path if chosen else start.path, output.path)
        draw(ctx.metrics.history(), ctx.run_dir)
        if config.exp_manager.explicit_log_dir:
            copy_logs(ctx.run_dir, Path(config.exp_manager.explicit_log_dir))
    dist.barrier()
    output.note(
        weights_digest=weights_digest(output.path),
        parent_weights_digest=parent,
        best_step=best_step,
        steps=steps,
        **tokenizer_facts(tokenizer, chat),
    )
    ctx.summarise(
        distance_before=before.distance,
        distance_after=best.distance,
        mean_drift=best.mean_drift,
        effective_sample_size=before.effective_sample_size,
        sampler_gap=before.sampler_gap,
        best_step=best_step,
        steps=steps,
    )


def named(part: str, figures: Figures) -> dict[str, float]:
    """The figures under the names of the metrics: ``train_loss``, ``validation_distance``, ..."""
    return {f"{part}_{name}": value for name, value in asdict(figures).items()}


def copy_model(source: Path, target: Path) -> None:
    """Copy the parts of a checkpoint, and no record or marker that lies beside them."""
    shutil.copyfile(source / CONFIG, target / CONFIG)
    for part in (WEIGHTS, TOKENIZER):
        shutil.copytree(source / part, target / part)
