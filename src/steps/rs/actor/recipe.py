"""Rejection sampling: draw several responses to a prompt, keep the best, learn to say them.

From NeMo-Aligner (``train_gpt_rs_actor.py``, ``RSTrainer``, ``MegatronGPTRSModel``) it keeps the
keys of the config, a remote reward model, the best ``top_n_rollouts`` of a prompt, and the mean
negative log-likelihood of what is kept.  It leaves out, on purpose:

* a mean of means as loss, and padding that is trained on: one denominator holds for the whole
  global batch, and only tokens of responses are in it;
* groups found by equal prompts, ``top_n_rollouts: 0`` for all, and NaN that is ranked: groups are
  places in a step, ties go to the earlier sample and are counted, a failure is never a score;
* days of waiting, ``sleep`` for readiness, no second try: the client has a deadline and bounded
  retries, and when it gives up the state is saved first;
* scores that are waited for while nothing is drawn, token ids that are sent, and kept rows as what
  progress counts.

Shapes: ``_P`` prompts, ``_G`` samples of a group.
"""

from __future__ import annotations

import time
from contextlib import closing
from dataclasses import asdict
from pathlib import Path

import torch
import torch.distributed as dist

from nemotron_style.runtime.errors import Interrupted, Problem, StepFailed
from nemotron_style.runtime.step.context import StepContext
from nemotron_style.steps.blocks.checkpoint.model_checkpoint import (
    TOKENIZER,
    load_model,
    read_config,
    save_model,
    weights_digest,
)
from nemotron_style.steps.blocks.data.sample_order import SampleOrder
from nemotron_style.steps.blocks.data.tokenizer import Tokenizer, describe, open_chat, stop_id
from nemotron_style.steps.blocks.data.toy_truth import load_truth
from nemotron_style.steps.blocks.generation.backend import open_engine
from nemotron_style.steps.blocks.model.device import prepare_device
from nemotron_style.steps.blocks.model.parallel import any_rank, initialize
from nemotron_style.steps.blocks.reward.client import RewardUnavailable
from nemotron_style.steps.blocks.training.launch_check import is_due
from nemotron_style.steps.blocks.training.lr_schedule import cosine_annealing
from nemotron_style.steps.blocks.training.metric_plot import copy_logs, draw_metrics
from nemotron_style.steps.blocks.training.optimizer import build_optimizer
from nemotron_style.steps.blocks.training.sample_table import describe_samples, write_samples
from nemotron_style.steps.blocks.training.training_state import load_state, save_state
from nemotron_style.steps.rs.actor.batch import accumulate, count_tokens, measure_kl
from nemotron_style.steps.rs.actor.best_of_n import bound_kl, bound_win_rate
from nemotron_style.steps.rs.actor.check import (
    check_machine,
    check_prompts,
    check_reward_model,
    check_sampler,
)
from nemotron_style.steps.rs.actor.config import Config
from nemotron_style.steps.rs.actor.metrics import (
    Heldout,
    describe_rollouts,
    difference,
    summarise_gain,
)
from nemotron_style.steps.rs.actor.plot import PANELS
from nemotron_style.steps.rs.actor.prompt import Prompt, read_prompts
from nemotron_style.steps.rs.actor.reward_pool import Judge
from nemotron_style.steps.rs.actor.rollout import Roller, name_groups
from nemotron_style.steps.rs.actor.samples import sample_table
from nemotron_style.steps.rs.actor.setup import open_client, plan_sampling


def run(config: Config, ctx: StepContext) -> None:
    """Train ``model`` on the best of its own responses to ``prompts``; produce the last weights."""
    # -- what is trained, and its words
    device = prepare_device()
    check_machine(config, ctx, device)
    initialize(seed=config.seed)
    source = ctx.input("model")
    tokenizer = Tokenizer(source.path / TOKENIZER)
    chat = open_chat(tokenizer, config.model.data.chat_prompt_tokens)
    limit = read_config(source.path).max_sequence_length
    sampling = plan_sampling(config, limit, stop=stop_id(tokenizer, chat))

    # -- the prompts: all of them checked before any work is done
    def prompts_of(slot: str) -> list[Prompt]:
        return read_prompts(
            ctx.input(slot).path,
            chat=chat,
            encode=lambda text: tokenizer.encode(text, control=True),
            room=config.context(limit) - sampling.max_new_tokens,
        )

    rs, settings = config.model.rs, config.trainer.rs
    prompts = prompts_of("prompts")
    heldout_prompts = prompts_of("validation") if ctx.optional_input("validation") else []
    truth_given = ctx.optional_input("truth")
    truth = load_truth(truth_given.path) if truth_given else None
    check_prompts(config, len(prompts))
    order = SampleOrder(
        len(prompts), config.seed, rs.num_rollout_samples, sample=config.model.data.sample
    )
    steps = order.steps(max_steps=settings.max_steps, max_epochs=settings.max_epochs)
    ctx.say(f"{len(prompts)} prompts, {len(heldout_prompts)} held out, {steps} steps")

    # -- the policy, the model it started from, and who judges
    dtype = torch.bfloat16 if config.trainer.half else torch.float32
    spread = config.model.optim.name == "distributed_fused_adam"
    model, sizes = load_model(source.path, dtype=dtype, distributed_optimizer=spread)
    start, _ = load_model(source.path, dtype=dtype, ddp=False)
    optimizer = build_optimizer(model, config.model.optim, gradient_clip=settings.gradient_clip_val)
    engine = open_engine(config.generation, model, sizes, tokenizer=tokenizer.path)
    client = open_client(config, ctx) if ctx.is_first else None
    with closing(engine) as sampler, Judge(client) as judge:
        health = judge.wait_ready(config.remote_rm.waiting.ready_seconds)
        ctx.say(f"reward model {health.model}, scores of {', '.join(health.outputs)}")
        roller = Roller(sampler, judge, tokenizer, chat, sampling)

        def validate(step: int) -> Heldout:
            count = rs.num_val_samples or rs.num_rollout_samples
            asked = name_groups(
                heldout_prompts,
                [number % len(heldout_prompts) for number in range(count)],
                *(config.seed, "validation"),
            )
            size = rs.val_rollout_micro_batch_size or rs.rollout_micro_batch_size
            rollouts, _ = roller.roll(asked, samples=1, size=size)
            found = Heldout.of(step, min(len(heldout_prompts), count), rollouts, truth)
            told = found.named(before if before.step == 0 else found)
            ctx.metrics.log(step, **told)
            ctx.say(
                f"step {step}: "
                + ", ".join(f"{k} {v:.3f}" for k, v in told.items() if k.endswith("_mean"))
            )
            return found

        def save(step: int) -> None:
            extra = {"reward_model": health.model, "before": asdict(before), "seen": asdict(seen)}
            save_state(ctx.checkpoints.stage(step), model, optimizer, extra=extra)
            ctx.checkpoints.commit(
                step, keep=config.exp_manager.checkpoint_callback_params.save_top_k
            )
            dist.barrier()

        before = seen = Heldout()
        newest, done = ctx.checkpoints.newest(), 0
        if newest:
            extra = load_state(newest.path, model, optimizer)
            check_reward_model(extra["reward_model"], health.model)
            done, before, seen = newest.step, Heldout(**extra["before"]), Heldout(**extra["seen"])
            ctx.say(f"continuing after step {done}")
        ctx.metrics.rewind(done if newest else -1)
        sampler.update()
        probe = name_groups(prompts, order.batch(0), config.seed, "probe")
        gap = check_sampler(config, sampler, model, asked=probe, room=sampling.max_new_tokens)
        ctx.say(f"sampler and trainer agree: token_mult_prob_error {gap.token_mult_prob_error:.6f}")

        # -- training: draw, score, choose, update; `step` steps are done
        saved, counts = done, judge.counts
        bounds = {
            "bound_kl": bound_kl(rs.num_rollouts_per_prompt, rs.top_n_rollouts),
            "bound_win_rate": bound_win_rate(rs.num_rollouts_per_prompt, rs.top_n_rollouts),
        }
        for step in range(done, steps + 1):
            try:
                look = step == 0 or is_due(step, settings.val_check_interval, last=steps)
                if heldout_prompts and look and seen.step < step:
                    seen = validate(step)
                    before = before if step else seen
                stopping = any_rank(ctx.stopping) and step < steps
                due = is_due(step, config.trainer.rs.steps_between_saves, last=steps) or stopping
                if due and step > saved:
                    save(step)
                    saved = step
                if stopping:
                    raise Interrupted(
                        f"stopped after step {step} of {steps}; the same command continues"
                    )
                if step == steps:
                    break
                asked = name_groups(prompts, order.batch(step), config.seed, "rollout", step)
                rollouts, seconds = roller.roll(
                    asked, samples=rs.num_rollouts_per_prompt, size=rs.rollout_micro_batch_size
                )
            except (RewardUnavailable, Interrupted):  # on all ranks, before any update of this step
                ctx.metrics.log(step + 1, **difference(counts, judge.counts))
                if step > saved:
                    save(step)
                raise

            begun = time.monotonic()
            choices = [rollout.choose(rs.top_n_rollouts) for rollout in rollouts]
            figures = describe_rollouts(rollouts, choices) | {
                "kl_to_start": measure_kl(
                    model,
                    start,
                    [rollout.group(range(len(rollout.responses))) for rollout in rollouts],
                    size=(rs.forward_micro_batch_size or rs.rollout_micro_batch_size)
                    * rs.num_rollouts_per_prompt,
                    temperature=sampling.temperature or 1.0,
                )
            }
            kept = [
                rollout.group(choice.kept)
                for rollout, choice in zip(rollouts, choices, strict=True)
            ]
            width = len(kept) // config.updates_per_step
            nll = tokens = 0.0
            for update in range(config.updates_per_step):
                groups = [one for one in kept[update * width :][:width] if one.responses_ids]
                if not groups:
                    raise StepFailed(nothing_to_learn(step + 1))
                loss = accumulate(model, groups, size=config.model.micro_batch_size)
                nll, tokens = nll + loss * count_tokens(groups), tokens + count_tokens(groups)
                lr = cosine_annealing(
                    config.model.optim,
                    step * config.updates_per_step + update,
                    updates=steps * config.updates_per_step,
                )
                grad_norm = optimizer.step(lr)
            sampler.update()

            seconds["train_seconds"] = time.monotonic() - begun
            drawn = sum(len(one.tokens) for rollout in rollouts for one in rollout.responses)
            counts, earlier = judge.counts, counts
            ctx.metrics.log(
                step + 1,
                **figures,
                **bounds,
                loss=nll / tokens,
                lr=lr,
                grad_norm=grad_norm,
                epoch=order.epoch(step),
                prompts=(step + 1) * rs.num_rollout_samples,
                **seconds,
                drawn_tokens_per_second=drawn / sum(seconds.values()),
                **difference(earlier, counts),
            )
            rows = sample_table(rollouts, choices)
            if ctx.is_first:
                write_samples(ctx.run_dir, step + 1, rows)
            ctx.say(f"step {step + 1}: {describe_samples(rows, text='response')}")
            ctx.progress(
                step + 1,
                steps,
                reward=figures["reward_mean"],
                kept=figures["reward_kept_mean"],
                kl=figures["kl_to_start"],
            )

    # -- what is produced: the last weights, and how they came to be
    output = ctx.output("model")
    save_model(model, output.path, config=sizes, tokenizer=source.path / TOKENIZER)
    dist.barrier()
    if ctx.is_first:
        draw_metrics(ctx.metrics.history(), PANELS, ctx.run_dir / "plots" / "rs.png")
        if config.exp_manager.explicit_log_dir:
            copy_logs(ctx.run_dir, Path(config.exp_manager.explicit_log_dir))
    output.note(
        weights_digest=weights_digest(model),
        parent_weights_digest=str(
            source.facts.get("weights_digest") or weights_digest(source.path)
        ),
        reward_model_digest=health.model,
        reward_outputs=list(health.outputs),
        steps=steps,
        prompts=steps * rs.num_rollout_samples,
        **describe(tokenizer, chat),
    )
    gains = summarise_gain(before, seen) if heldout_prompts else {}
    agreement = {"token_mult_prob_error": gap.token_mult_prob_error}
    ctx.summarise(**gains, **agreement, steps=steps, prompts=steps * rs.num_rollout_samples)


def nothing_to_learn(step: int) -> Problem:
    """A batch in which no sample has a score."""
    return Problem(
        where=f"step {step}",
        what="no sample of a global batch can be said in a conversation, so none has a score",
        fix="look at what the model says: empty responses, or control tokens inside them",
    )
