"""Rejection sampling: sample several responses to a prompt, keep the best, train on them.

From NeMo-Aligner (``train_gpt_rs_actor.py``, ``RSTrainer``, ``MegatronGPTRSModel``) it keeps the
keys of the config, a remote reward model, the best ``top_n_rollouts`` of a prompt, and the mean
negative log-likelihood of what is kept.  It leaves out, on purpose:

* a mean of means as loss, and padding that is trained on: one denominator holds for the whole
  global batch, and only tokens of responses are in it;
* groups found by equal prompts, ``top_n_rollouts: 0`` for all, and NaN that is ranked: groups are
  indices in a step, ties go to the earlier sample and are counted, a failure is never a score;
* days of waiting, ``sleep`` for readiness, no second try: the client has a deadline and bounded
  retries, and when it gives up the state is saved first;
* scores that are waited for while nothing is sampled, token ids that are sent, and kept rows as
  what progress counts.

Shapes: ``_P`` prompts, ``_G`` samples of a group.
"""

from __future__ import annotations

from contextlib import closing
from dataclasses import asdict, dataclass, field
from functools import partial
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
from nemotron_style.steps.blocks.data.chat.opening import open_chat, tokenizer_facts
from nemotron_style.steps.blocks.data.layouts.reader import RowReader
from nemotron_style.steps.blocks.data.prompt import PromptReader, count_shared
from nemotron_style.steps.blocks.data.sample_order import SampleOrder
from nemotron_style.steps.blocks.data.tokenizer import Tokenizer
from nemotron_style.steps.blocks.data.tokenizer_files import store_chat
from nemotron_style.steps.blocks.data.toy_truth import load_truth
from nemotron_style.steps.blocks.generation.answer_samples import AnswerSamples, Question
from nemotron_style.steps.blocks.generation.backend import open_engine
from nemotron_style.steps.blocks.model.device import prepare_device
from nemotron_style.steps.blocks.model.parallel import Parallel, initialize
from nemotron_style.steps.blocks.reward.client import RewardUnavailable
from nemotron_style.steps.blocks.stats.metric_plot import copy_logs, draw_metrics
from nemotron_style.steps.blocks.training.launch_check import check_launch
from nemotron_style.steps.blocks.training.loop import Schedule, TrainingLoop
from nemotron_style.steps.blocks.training.lr_schedule import cosine_annealing, warn_if_held
from nemotron_style.steps.blocks.training.microbatch import accumulate_nll, count_tokens
from nemotron_style.steps.blocks.training.optimizer import build_optimizer
from nemotron_style.steps.blocks.training.product import product_of, write_product
from nemotron_style.steps.blocks.training.start_policy import StartPolicy
from nemotron_style.steps.blocks.training.trained_model import Adaptation, load_trained_model
from nemotron_style.steps.blocks.training.training_state import TrainingState
from nemotron_style.steps.rs.actor.best_of_n import bound_kl, bound_win_rate, choose
from nemotron_style.steps.rs.actor.check import (
    check_prompts,
    check_reward_model,
    check_reward_room,
    check_sampler,
)
from nemotron_style.steps.rs.actor.config import Config
from nemotron_style.steps.rs.actor.metrics import (
    measure_kl,
    report_step,
    rollout_metrics,
    step_seconds,
)
from nemotron_style.steps.rs.actor.plot import PANELS
from nemotron_style.steps.rs.actor.reward_pool import RewardPool, open_client
from nemotron_style.steps.rs.actor.rollout import (
    RolloutSampler,
    plan_sampling,
    seed_prompts,
    split_batches,
)
from nemotron_style.steps.rs.actor.samples import sample_rows, write_held_out
from nemotron_style.steps.rs.actor.validation import Validation, ValidationResult, summarise_gain


def run(config: Config, ctx: StepContext) -> None:
    """Train ``model`` on the best of its own responses; produce the last weights or adapters."""
    # -- what is trained, and its tokenizer
    prepare_device()
    check_launch(config.trainer, world_size=ctx.world_size)
    initialize(Parallel.of(config.model), seed=config.seed)
    source = ctx.input("model")
    chat = open_chat(Tokenizer(source.path / TOKENIZER), config.model.data.chat_prompt_tokens)
    sizes = read_config(source.path)
    limit = sizes.max_sequence_length
    adaptation = Adaptation.of(ctx, config.model.peft, seed=config.seed)
    params = plan_sampling(config, limit, stop_ids=chat.stop_ids)

    # -- the prompts: all of them checked before any work is done
    trainer, rs, settings = config.trainer, config.model.rs, config.trainer.rs
    key = "model.rs.length_params.max_length"
    rows = RowReader("prompts", config.model.data, "model.data")
    reader = PromptReader(chat, config.context(limit), params.max_new_tokens, key, rows)
    prompts = reader.read(ctx.input("prompts").path)
    rows.report.tell(ctx, "prompts", output=product_of(adaptation))
    validation_input, truth_input = ctx.optional_input("validation"), ctx.optional_input("truth")
    held_out = reader.read(validation_input.path) if validation_input else []
    truth = load_truth(truth_input.path) if truth_input else None
    check_prompts(config, len(prompts))
    if shared := count_shared(prompts, held_out):
        ctx.say(f"warning: {shared} of {len(held_out)} held-out prompts are trained on too")
    size, repeats = rs.num_rollout_samples, config.model.data.sample
    order = SampleOrder(len(prompts), config.seed, size, sample=repeats)
    steps = order.steps(max_steps=settings.max_steps, max_epochs=settings.max_epochs)
    ctx.say(f"{len(prompts)} prompts, {len(held_out)} held out, {steps} steps")
    warn_if_held(ctx, config.model.optim, updates=steps * config.updates_per_step)

    # -- the policy (LoRA: adapters alone are trained), its start, and the reward model
    dtype = torch.bfloat16 if config.trainer.half else torch.float32
    model = load_trained_model(
        ctx, adaptation, dtype=dtype, optim=config.model.optim, activations=config.model.activations
    )
    start = StartPolicy.of(ctx, model, adaptation, dtype=dtype)
    optimizer = build_optimizer(model, config.model.optim, gradient_clip=settings.gradient_clip_val)
    engine = open_engine(config.generation, model, sizes, tokenizer=chat.tokenizer.path)
    client = open_client(config, ctx) if ctx.is_first else None
    with closing(engine), RewardPool(client) as reward_pool:
        health = reward_pool.wait_ready(config.remote_rm.waiting.ready_seconds)
        ctx.say(f"reward model {health.model}, scores of {', '.join(health.outputs)}")
        check_reward_room(health, [*prompts, *held_out], chat, params.max_new_tokens)
        checkpoint = TrainingState(ctx, model, optimizer, adaptation and adaptation.base)
        done, stored = checkpoint.restore()
        state = RunState.load(stored) if stored else RunState(reward_model=health.model)
        check_reward_model(state.reward_model, health.model)
        sampler = RolloutSampler(engine, reward_pool, chat, params)
        validation = Validation(config, held_out, sampler, truth)

        def validate(step: int) -> None:
            with reward_pool.log_failure(ctx.metrics, step + 1):
                state.latest = validation.run(step)
            if step == 0:
                state.start = state.latest
            metrics = state.latest.metrics(state.start)
            ctx.metrics.log(step, **metrics)
            write_held_out(ctx, state.start, state.latest, held_out)
            means = [f"{k} {v:.3f}" for k, v in metrics.items() if k.endswith("_mean")]
            ctx.say(f"step {step}: {', '.join(means)}")

        def save(step: int) -> None:
            keep = config.exp_manager.checkpoint_callback_params.save_top_k
            checkpoint.save(step, state.stored(), keep=keep)

        questions = (Question(prompt.ids) for prompt in chain(held_out, prompts))
        table = AnswerSamples.open(ctx, trainer.samples, chat, sizes, questions, gathers=True)
        table.begin(model, done)
        # -- the gate: the trainer must see the engine's samples as the engine does
        engine.update()
        probe = seed_prompts(prompts, order.batch(0), config.seed, "probe")
        gap = check_sampler(config, engine, model, probe, max_new_tokens=params.max_new_tokens)
        ctx.say(f"sampler and trainer agree: token_mult_prob_error {gap.token_mult_prob_error:.6f}")

        # -- training: one step is P prompts, n responses to each, and one update or several
        loop = TrainingLoop(
            ctx,
            Schedule.of(settings, steps, validate_at_start=True),
            validate=validate if held_out else None,
            save=save,
            failures=(RewardUnavailable,),
        )
        n, top_n, updates = rs.num_rollouts_per_prompt, rs.top_n_rollouts, config.updates_per_step
        lot, micro_batch_size = rs.rollout_micro_batch_size, config.model.micro_batch_size
        bounds = {"bound_kl": bound_kl(n, top_n), "bound_win_rate": bound_win_rate(n, top_n)}
        kl_to_start = partial(
            measure_kl,
            model,
            start,
            max_responses=n * (rs.forward_micro_batch_size or lot),
            temperature=params.temperature or 1.0,
        )
        learning_rate = partial(cosine_annealing, config.model.optim, updates=steps * updates)
        for step in loop.steps(done, validated=state.latest.step):
            seeded = seed_prompts(prompts, order.batch(step - 1), config.seed, "rollout", step - 1)
            # n responses to each prompt; those of a lot are scored while the next lot is sampled
            with loop.save_on_failure(), reward_pool.log_failure(ctx.metrics, step):
                responses = sampler.sample(seeded, samples=n, lot=lot)
                loop.lap("draw_seconds")
                rollouts = sampler.collect_scores(seeded, responses)
                loop.lap("score_wait_seconds")

            # best of n: of each group the top_n responses with the highest scores are kept
            choices = [choose(rollout.rewards, top_n) for rollout in rollouts]
            kept = [
                rollout.group(choice.kept)
                for rollout, choice in zip(rollouts, choices, strict=True)
            ]
            metrics = rollout_metrics(rollouts, choices)
            metrics["kl_to_start"] = kl_to_start([rollout.group() for rollout in rollouts])

            # loss: -sum log p / T over the T tokens of all kept responses of a global batch
            nll = tokens = 0.0
            for number, batch in enumerate(split_batches(kept, updates, step=step)):
                batch_nll = accumulate_nll(model, batch, max_responses=micro_batch_size)
                batch_tokens = count_tokens(batch)
                lr = learning_rate((step - 1) * updates + number)
                grad_norm = optimizer.step(lr, step=step, loss=batch_nll / batch_tokens)
                nll, tokens = nll + batch_nll, tokens + batch_tokens
            engine.update()

            metrics |= bounds | {"loss": nll / tokens, "lr": lr, "grad_norm": grad_norm}
            metrics |= {"epoch": order.epoch(step - 1), "prompts": step * rs.num_rollout_samples}
            metrics |= step_seconds(rollouts, loop.lap("train_seconds")) | reward_pool.take_counts()
            report_step(ctx, step, steps, metrics, rows=sample_rows(rollouts, choices))
        table.finish(model, steps)

    # -- what is produced: the last weights or adapters, and how they came to be
    output = write_product(ctx, model, adaptation, sizes=sizes, tokenizer=chat.tokenizer.path)
    if ctx.is_first:
        store_chat(output.path / TOKENIZER, chat)
        draw_metrics(ctx.metrics.history(), PANELS, ctx.run_dir / "plots" / "rs.png")
        if config.exp_manager.explicit_log_dir:
            copy_logs(ctx.run_dir, Path(config.exp_manager.explicit_log_dir))
    output.note(
        parent_weights_digest=recorded_weights_digest(source),
        reward_model_digest=health.model,
        reward_outputs=list(health.outputs),
        steps=steps,
        prompts=steps * rs.num_rollout_samples,
        **tokenizer_facts(chat.tokenizer, chat),
    )
    ctx.summarise(
        **(summarise_gain(state.start, state.latest) if held_out else {}),
        token_mult_prob_error=gap.token_mult_prob_error,
        steps=steps,
        prompts=steps * rs.num_rollout_samples,
    )


@dataclass
class RunState:
    """What a run needs besides weights and random numbers to continue as if never stopped.

    ``start`` and ``latest`` are the results of the first and of the last validation.
    """

    reward_model: str
    start: ValidationResult = field(default_factory=ValidationResult)
    latest: ValidationResult = field(default_factory=ValidationResult)

    def stored(self) -> dict[str, Any]:
        """The state as a checkpoint keeps it, under the names of the first version."""
        before, seen = asdict(self.start), asdict(self.latest)
        return {"reward_model": self.reward_model, "before": before, "seen": seen}

    @classmethod
    def load(cls, stored: dict[str, Any]) -> RunState:
        """The state that a checkpoint keeps."""
        start, latest = ValidationResult(**stored["before"]), ValidationResult(**stored["seen"])
        return cls(stored["reward_model"], start, latest)
