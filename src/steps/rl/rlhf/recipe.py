"""GRPO on the verdicts of a generative judge.

From NeMo-RL (``grpo.py``, ``ClippedPGLossFn``) and NeMo-Gym (``genrm_compare``) it keeps the keys
of the config, the comparison strategies and what verdicts are worth, the advantages, the loss with
its options and the names of the metrics.  It leaves out, on purpose:

* a failed judgement that becomes a middling score on which the group is trained: such a group is
  masked, counted and named, and above a budget the run stops in a state that it continues from;
* groups found by equal prompts: a group is an index in a step;
* Ray, and processes that sample while others train: an engine belongs to each process, samples in
  it or in vLLM beside it, and gets the weights after the last update of a step;
* the computation of a prompt again for each of its samples: they share it in the update too.

Shapes: ``_P`` prompts, ``_G`` samples of a group, ``_B`` the P x G samples of a step.
"""

from __future__ import annotations

from contextlib import closing
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import chain
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
from nemotron_style.steps.blocks.data.prompt import PromptReader
from nemotron_style.steps.blocks.data.sample_order import SampleOrder
from nemotron_style.steps.blocks.data.tokenizer import Tokenizer
from nemotron_style.steps.blocks.data.toy_truth import load_truth
from nemotron_style.steps.blocks.generation.answer_samples import AnswerSamples, Question
from nemotron_style.steps.blocks.generation.backend import open_engine
from nemotron_style.steps.blocks.generation.sampling_params import SamplingParams
from nemotron_style.steps.blocks.judge.client import JudgeUnavailable
from nemotron_style.steps.blocks.judge.group_judge import sum_failures
from nemotron_style.steps.blocks.loss.advantage import clip_advantages, group_advantages
from nemotron_style.steps.blocks.loss.loss_metrics import merge_metrics
from nemotron_style.steps.blocks.model.device import prepare_device
from nemotron_style.steps.blocks.model.parallel import Parallel, initialize
from nemotron_style.steps.blocks.model.rank_zero import RankZero
from nemotron_style.steps.blocks.stats.metric_plot import draw_metrics
from nemotron_style.steps.blocks.training.loop import Schedule, TrainingLoop
from nemotron_style.steps.blocks.training.optimizer import build_optimizer
from nemotron_style.steps.blocks.training.product import product_of, write_product
from nemotron_style.steps.blocks.training.start_policy import StartPolicy
from nemotron_style.steps.blocks.training.trained_model import Adaptation, load_trained_model
from nemotron_style.steps.blocks.training.training_state import TrainingState
from nemotron_style.steps.rl.rlhf.advantages import build_samples, shape_rewards
from nemotron_style.steps.rl.rlhf.check import (
    PROBED,
    check_held_out,
    check_job,
    check_same_judge,
    count_flat_steps,
    run_gate,
)
from nemotron_style.steps.rl.rlhf.config import Config
from nemotron_style.steps.rl.rlhf.metrics import (
    measure_kl,
    report_step,
    report_validation,
    rollout_metrics,
)
from nemotron_style.steps.rl.rlhf.pairwise_judge import find_judge, open_judge, read_card
from nemotron_style.steps.rl.rlhf.plot import PANELS
from nemotron_style.steps.rl.rlhf.rollout import RolloutSampler, mean_tokens
from nemotron_style.steps.rl.rlhf.samples import sample_rows
from nemotron_style.steps.rl.rlhf.train_sample import (
    accumulate_policy_loss,
    add_previous,
    add_reference,
    compute_logprobs,
    mask_wide_gaps,
    split_batches,
)
from nemotron_style.steps.rl.rlhf.validation import Answers, Validation, summarise


def run(config: Config, ctx: StepContext) -> None:
    """Align ``model`` on ``prompts`` by the verdicts of the judge; produce weights or adapters."""
    # -- what is trained, and its tokenizer
    prepare_device()
    check_job(config, ctx)
    initialize(Parallel.of(config.policy.megatron_cfg), seed=config.seed)
    source = ctx.input("model")
    tokenizer = Tokenizer(source.path / TOKENIZER)
    chat = open_chat(tokenizer)
    sizes = read_config(source.path)
    limit = sizes.max_sequence_length
    grpo, policy = config.grpo, config.policy
    adaptation = Adaptation.of(ctx, policy.megatron_cfg.peft.as_peft, seed=config.seed)
    sampling = SamplingParams(
        max_new_tokens=config.max_new_tokens(limit),
        temperature=policy.generation.temperature,
        stop_ids=chat.stop_ids,
    )

    # -- the prompts: all of them checked before any work is done
    key = "policy.generation.max_new_tokens"
    rows = RowReader("prompts", config.data, "data")
    reader = PromptReader(chat, config.context(limit), sampling.max_new_tokens, key, rows)
    prompts = reader.read(ctx.input("prompts").path)
    rows.report.tell(ctx, "prompts", output=product_of(adaptation))
    validation_input, truth_input = ctx.optional_input("validation"), ctx.optional_input("truth")
    held_out = reader.read(validation_input.path) if validation_input else []
    check_held_out(config, ctx, prompts, held_out)
    truth = load_truth(truth_input.path) if truth_input else None
    size, shuffle = grpo.num_prompts_per_step, config.data.shuffle
    order = SampleOrder(len(prompts), config.seed, size, shuffle=shuffle)
    steps = order.steps(max_steps=grpo.max_num_steps, max_epochs=grpo.max_num_epochs)
    ctx.say(f"{len(prompts)} prompts, {len(held_out)} held out, {steps} steps")

    # -- the policy (LoRA: adapters alone are trained), the frozen reference, and the judge
    dtype = torch.bfloat16 if policy.half else torch.float32
    model = load_trained_model(
        ctx,
        adaptation,
        dtype=dtype,
        optim=policy.optim,
        activations=policy.megatron_cfg.activations,
    )
    reference = StartPolicy.of(ctx, model, adaptation, dtype=dtype)
    optimizer = build_optimizer(model, policy.optim, gradient_clip=policy.max_grad_norm)
    rank_zero = RankZero()
    engine = open_engine(policy.generation.backend, model, sizes)
    sampler = RolloutSampler(engine, rank_zero, chat, sampling)
    with closing(engine), open_judge(config, ctx, rank_zero) as judge:
        ctx.say(f"judge {judge.identity}")
        checkpoint = TrainingState(ctx, model, optimizer, adaptation and adaptation.base)
        done, stored = checkpoint.restore()
        state = RunState.load(stored) if stored else RunState(judge=judge.identity)
        check_same_judge(state.judge, judge.identity)
        validation = Validation(config, held_out, sampler, judge, truth)

        def validate(step: int) -> None:
            metrics, rows = validation.run(step, state.start)
            report_validation(ctx, step, metrics, rows)
            state.validated, state.validation = step, metrics

        def save(step: int) -> None:
            keep = config.checkpointing.keep_top_k or steps + 1
            checkpoint.save(step, state.stored(), keep=keep)

        # -- the gate: sampler, trainer, reference and judge must agree before anything is trained
        engine.update()
        sample = partial(sampler.sample, prompts, samples=grpo.num_generations_per_prompt)
        probes = sample(order.batch(0)[:PROBED], name=f"{config.seed}/probe")
        gate = run_gate(config, model, None if done else reference, judge, probes)
        ctx.say("gate: " + ", ".join(f"{k[5:]} {v:.6g}" for k, v in gate.items()))
        if not done:
            state.start, state.start_tokens = validation.answer(0, "start"), mean_tokens(probes)
        questions = (Question(prompt.ids) for prompt in chain(held_out, prompts))
        table = AnswerSamples.open(ctx, config.samples, chat, sizes, questions, gathers=True)
        table.begin(model, done)

        # -- training: one step is P prompts, G answers to each, and one update or several
        loop = TrainingLoop(
            ctx,
            plan_schedule(config, steps),
            validate=validate if held_out else None,
            save=save,
            failures=(JudgeUnavailable,),
        )
        updates = config.updates_per_step
        learning_rate = partial(policy.megatron_cfg.learning_rate, updates=steps * updates)
        for step in loop.steps(done, validated=state.validated):
            # G answers to each of P prompts, whose rewards are what the judge says of them in pairs
            with loop.save_on_failure():
                rollouts = sample(order.batch(step - 1), name=f"{config.seed}/rollout/{step - 1}")
                loop.lap("timing/train/generation")
                judged = judge.compare([each.answer_group for each in rollouts], step=step)
                loop.lap("timing/train/judge")

            # advantages: (r - mean) / std, over the other samples of the same prompt or over all
            shaped = shape_rewards(rollouts, judged.rewards, grpo)
            baseline = shaped.baseline(leave_one_out=config.leave_one_out)
            advantages_B = group_advantages(shaped.rewards_B, baseline, normalize=config.normalize)
            advantages_B = clip_advantages(advantages_B, *config.advantage_range)
            samples = build_samples(rollouts, shaped, advantages_B)
            metrics = rollout_metrics(rollouts, shaped, baseline, samples) | judged.metrics
            state.flat_steps = count_flat_steps(config, step, metrics, state.flat_steps)

            # log-probs: of the policy before the first update of this step, and of the reference
            if config.needs_previous_logprobs:
                samples = add_previous(samples, compute_logprobs(model, samples, policy))
            if not grpo.skip_reference_policy_logprobs_calculation:
                with reference.use() as start:
                    samples = add_reference(samples, compute_logprobs(start, samples, policy))
            samples, gaps = mask_wide_gaps(samples, grpo.seq_logprob_error_threshold)
            metrics |= gaps | measure_kl(samples)

            # loss: mean of max(-A r, -A clip(r)) + beta KL(policy, reference), r = p / p_previous
            parts = []
            for number, batch in split_batches(samples, policy.train_global_batch_size):
                update = accumulate_policy_loss(model, batch, config)
                lr = learning_rate((step - 1) * updates + number)
                grad_norm = optimizer.step(lr, step=step, loss=update["loss"])
                parts.append(update | {"lr": lr, "grad_norm": grad_norm})
            engine.update()

            metrics |= merge_metrics(parts) | loop.lap("timing/train/policy_training")
            metrics |= {"start_tokens": state.start_tokens, "epoch": order.epoch(step - 1)}
            metrics |= gate if step == 1 else {}
            table_rows = sample_rows(rollouts, judged, samples)
            report_step(ctx, step, steps, metrics, rows=table_rows, shown_alerts=state.alerts)
        table.finish(model, steps)

    # -- what is produced: the last weights or adapters, and how they came to be
    judge_artifact = find_judge(ctx)
    output = write_product(ctx, model, adaptation, sizes=sizes, tokenizer=tokenizer.path)
    lines = ctx.metrics.history() if ctx.is_first else []
    if ctx.is_first:
        draw_metrics(lines, PANELS, ctx.run_dir / "plots" / "rlhf.png")
    output.note(
        parent_weights_digest=recorded_weights_digest(source),
        judge=state.judge,
        judge_digest=judge_artifact.digest if judge_artifact else None,
        judge_card=dict(read_card(judge_artifact)),
        steps=steps,
        **tokenizer_facts(tokenizer, chat),
    )
    ctx.summarise(
        **summarise(state.validation),
        **{f"judge_{name}": value for name, value in sum_failures(lines).items()},
        steps=steps,
        prompts=steps * grpo.num_prompts_per_step,
    )


def plan_schedule(config: Config, steps: int) -> Schedule:
    """When a run of ``steps`` validates and saves."""
    grpo = config.grpo
    return Schedule(
        steps=steps,
        validation_interval=grpo.val_period,
        save_interval=config.checkpointing.save_period,
        validate_at_start=grpo.val_at_start,
        validate_at_end=grpo.val_at_end,
        validate_from=grpo.val_start_at,
    )


@dataclass
class RunState:
    """What a run needs besides weights and random numbers to continue as if never stopped.

    ``start`` has the answers of the start to the held-out prompts, ``start_tokens`` the mean
    length of answers then; ``validation`` has the metrics of the last validation, after
    ``validated`` steps; ``flat_steps`` counts the last steps without any difference in rewards;
    ``alerts`` names those that were shown.
    """

    judge: str
    start: Answers = field(default_factory=Answers)
    start_tokens: float = 0.0
    validated: int = -1
    validation: dict[str, float] = field(default_factory=dict)
    flat_steps: int = 0
    alerts: list[str] = field(default_factory=list)

    def stored(self) -> dict[str, Any]:
        """The state as a checkpoint keeps it."""
        return {STORED_NAMES.get(name, name): value for name, value in asdict(self).items()}

    @classmethod
    def load(cls, stored: dict[str, Any]) -> RunState:
        """The state that a checkpoint keeps."""
        names = {stored: name for name, stored in STORED_NAMES.items()}
        values = {names.get(name, name): value for name, value in stored.items()}
        return cls(**values | {"start": Answers(**values["start"])})


# The names that states had from the first version on.
STORED_NAMES = {
    "validated": "looked",
    "validation": "seen",
    "flat_steps": "flat",
    "alerts": "signs",
}
