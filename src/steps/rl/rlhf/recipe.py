"""GRPO on verdicts of a generative judge: answer in groups, compare, learn what was better.

From NeMo-RL (``grpo.py``, ``ClippedPGLossFn``) and NeMo-Gym (``genrm_compare``) it keeps the keys
of the config, the comparison strategies and what verdicts are worth, the advantages, the loss with
its options and the names of the metrics.  It leaves out, on purpose:

* a failed judgement that becomes a middling score, on which the group is trained: such a group is
  masked, counted and named, and above a budget the run stops in a state that goes on;
* groups found by equal prompts: a group is a place in a step;
* Ray, a second copy of the policy in vLLM and the transfer of weights to it: samples are drawn by
  the engine in this process, from the weights that are trained;
* the computation of a prompt again for each of its samples: they share it in the update too.

Shapes: ``_P`` prompts, ``_G`` samples of a group.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, field, replace

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
from nemotron_style.steps.blocks.generation.engine import Engine
from nemotron_style.steps.blocks.generation.sampling_params import SamplingParams
from nemotron_style.steps.blocks.judge.client import JudgeUnavailable
from nemotron_style.steps.blocks.judge.group_judge import sum_failures
from nemotron_style.steps.blocks.loss.kl import estimate_kl
from nemotron_style.steps.blocks.loss.loss_metrics import merge_metrics
from nemotron_style.steps.blocks.model.device import prepare_device
from nemotron_style.steps.blocks.model.parallel import any_rank, initialize
from nemotron_style.steps.blocks.model.rank_zero import RankZero
from nemotron_style.steps.blocks.training.launch_check import is_due
from nemotron_style.steps.blocks.training.lr_schedule import megatron_decay
from nemotron_style.steps.blocks.training.optimizer import build_optimizer
from nemotron_style.steps.blocks.training.sample_table import describe_samples, write_samples
from nemotron_style.steps.blocks.training.training_state import load_state, save_state
from nemotron_style.steps.rl.rlhf import plot
from nemotron_style.steps.rl.rlhf.advantages import teach
from nemotron_style.steps.rl.rlhf.check import (
    PROBED,
    check_backend,
    check_job,
    check_judge,
    check_reference,
    check_room,
    check_same_judge,
    check_sampler,
)
from nemotron_style.steps.rl.rlhf.config import Config
from nemotron_style.steps.rl.rlhf.hacking_alert import find_signs
from nemotron_style.steps.rl.rlhf.pairwise_judge import find_judge, open_referee, read_card
from nemotron_style.steps.rl.rlhf.prompt import Prompt, read_prompts
from nemotron_style.steps.rl.rlhf.rollout import Roller, mean_tokens
from nemotron_style.steps.rl.rlhf.samples import sample_table
from nemotron_style.steps.rl.rlhf.train_sample import count_lessons, drop_strange, learn, look
from nemotron_style.steps.rl.rlhf.validation import (
    Looked,
    pair_up,
    read_judged,
    read_truth,
    summary,
)


@dataclass
class Memory:
    """What a run has to know besides weights and random numbers to go on as if never stopped.

    ``start`` holds the answers of the start to the held-out prompts, ``seen`` the figures of the
    last look at step ``looked``, ``flat`` the steps without a difference so far.
    """

    judge: str = ""
    start: Looked = field(default_factory=Looked)
    start_tokens: float = 0.0
    looked: int = -1
    seen: dict[str, float] = field(default_factory=dict)
    flat: int = 0
    signs: list[str] = field(default_factory=list)


def run(config: Config, ctx: StepContext) -> None:
    """Align ``model`` on ``prompts`` by the verdicts of the judge; produce the last weights."""
    # -- what is trained, and its words
    check_backend(config)
    prepare_device()
    check_job(config, ctx)
    initialize(seed=config.seed)
    source = ctx.input("model")
    tokenizer = Tokenizer(source.path / TOKENIZER)
    chat = open_chat(tokenizer)
    limit = read_config(source.path).max_sequence_length
    grpo, policy = config.grpo, config.policy
    temperature = policy.generation.temperature
    sampling = SamplingParams(
        max_new_tokens=config.max_new_tokens(limit),
        temperature=temperature,
        stop_ids=[stop_id(tokenizer, chat)],
    )

    # -- the prompts: all of them checked before any work is done
    room = check_room(config, sampling, limit)

    def prompts_of(slot: str) -> list[Prompt]:
        return read_prompts(
            ctx.input(slot).path,
            chat=chat,
            encode=lambda text: tokenizer.encode(text, control=True),
            room=room,
        )

    prompts = prompts_of("prompts")
    heldout = prompts_of("validation") if ctx.optional_input("validation") else []
    truth_given = ctx.optional_input("truth")
    truth = load_truth(truth_given.path) if truth_given else None
    order = SampleOrder(len(prompts), config.seed, grpo.num_prompts_per_step)
    steps = order.steps(max_steps=grpo.max_num_steps, max_epochs=grpo.max_num_epochs)
    ctx.say(f"{len(prompts)} prompts, {len(heldout)} held out, {steps} steps")

    # -- the policy, the model it started from, and who judges
    dtype = torch.bfloat16 if policy.half else torch.float32
    model, sizes = load_model(source.path, dtype=dtype, distributed_optimizer=policy.half)
    reference, _ = load_model(source.path, dtype=dtype, ddp=False)
    optimizer = build_optimizer(model, policy.optim, gradient_clip=policy.max_grad_norm)
    rank_zero, options = RankZero(), config.loss_fn
    roller = Roller(Engine(model, sizes), rank_zero, tokenizer, chat, sampling)
    seen_as = {"rank_zero": rank_zero, "temperature": temperature}
    with open_referee(config, ctx, rank_zero) as referee:
        ctx.say(f"judge {referee.identity}")
        memory = Memory(judge=referee.identity)

        def answer_heldout(step: int, name: str) -> Looked:
            rollouts = roller.roll(
                heldout,
                range(len(heldout)),
                samples=grpo.val_num_generations_per_prompt,
                name=f"{config.seed}/validation/{name}",
            )
            return Looked.of(step, rollouts)

        def validate(step: int) -> None:
            now = answer_heldout(step, "now")
            contests = pair_up(memory.start, now, heldout, name=f"{config.seed}/validation")
            judged = referee.judge(contests, step=step, both_orders=True)
            samples = grpo.val_num_generations_per_prompt
            figures = {"validation/tokens": now.tokens, **read_judged(judged, samples=samples)}
            if truth is not None:
                questions = [prompt.question for prompt in heldout]
                figures |= read_truth(truth, memory.start, now, questions)
            ctx.metrics.log(step, **figures)
            ctx.say(f"step {step}: " + ", ".join(f"{k} {v:.3f}" for k, v in figures.items()))
            memory.looked, memory.seen = step, figures

        def save(step: int) -> None:
            save_state(ctx.checkpoints.stage(step), model, optimizer, extra=asdict(memory))
            ctx.checkpoints.commit(step, keep=config.checkpointing.keep_top_k or steps + 1)
            dist.barrier()

        newest, done = ctx.checkpoints.newest(), 0
        if newest:
            kept = load_state(newest.path, model, optimizer)
            memory = Memory(**kept | {"start": Looked(**kept["start"])})
            check_same_judge(memory.judge, referee.identity)
            done = newest.step
            ctx.say(f"continuing after step {done}")
        ctx.metrics.rewind(done if newest else -1)

        # -- the gate: sampler, trainer, reference and judge agree on what is going on
        places = order.batch(0)[:PROBED]
        probes = roller.roll(
            prompts,
            places,
            samples=grpo.num_generations_per_prompt,
            name=f"{config.seed}/probe",
        )
        tried = teach(probes, [[0.0] * len(each.samples) for each in probes], config).lessons
        gate = {"gate/token_mult_prob_error": check_sampler(config, model, tried, referee)}
        if not done:
            gate["gate/kl_to_start"] = check_reference(config, (model, reference), tried, referee)
            gate |= check_judge(config, referee, probes)
            memory.start_tokens = mean_tokens(probes)
            memory.start = answer_heldout(0, "start") if heldout else Looked()
        ctx.say("gate: " + ", ".join(f"{k[5:]} {v:.6g}" for k, v in gate.items()))
        saved = done

        # -- training: answer, compare, learn; `step` steps are done
        for step in range(done, steps + 1):
            begun = time.monotonic()
            try:
                if heldout and memory.looked < step and wants_look(config, step, steps):
                    validate(step)
                stopping = any_rank(ctx.stopping) and step < steps
                due = is_due(step, config.checkpointing.save_period, last=steps) or stopping
                if due and step > saved:
                    save(step)
                    saved = step
                if stopping:
                    raise Interrupted(
                        f"stopped after step {step} of {steps}; the same command continues"
                    )
                if step == steps:
                    break
                begun = time.monotonic()
                rollouts = roller.roll(
                    prompts,
                    order.batch(step),
                    samples=grpo.num_generations_per_prompt,
                    name=f"{config.seed}/rollout/{step}",
                )
                drawn = time.monotonic()
                judged = referee.judge([each.contest for each in rollouts], step=step + 1)
            except (JudgeUnavailable, Interrupted):  # on all ranks, before any update of this step
                if step > saved:
                    save(step)
                raise

            judged_at = time.monotonic()
            taught = teach(rollouts, judged.rewards, config)
            memory.flat = memory.flat + 1 if taught.flat else 0
            if memory.flat >= config.judge.flat_steps:
                raise StepFailed(nothing_to_learn(step + 1, memory.flat))
            lessons, figures = taught.lessons, {**taught.metrics, **judged.metrics}
            if not options.force_on_policy_ratio or grpo.seq_logprob_error_threshold:
                found = look(model, lessons, size=policy.logprob_batch_size, **seen_as)
                lessons = [replace(x, previous_T=y) for x, y in zip(lessons, found, strict=True)]
                lessons, told = drop_strange(lessons, grpo.seq_logprob_error_threshold)
                figures |= told
            if not grpo.skip_reference_policy_logprobs_calculation:
                found = look(reference, lessons, size=policy.logprob_batch_size, **seen_as)
                lessons = [replace(x, reference_T=y) for x, y in zip(lessons, found, strict=True)]
                figures["hacking/kl_to_start"] = float(
                    estimate_kl(torch.cat([x.generation_T for x in lessons]), torch.cat(found))
                    .double()
                    .mean()
                )
            parts = []
            for update in range(config.updates_per_step):
                width = policy.train_global_batch_size
                batch = lessons[update * width :][:width]
                if not count_lessons(batch).tokens:
                    continue
                parts.append(
                    learn(model, batch, options, size=policy.train_micro_batch_size, **seen_as)
                )
                lr = megatron_decay(
                    policy.megatron_cfg.optimizer,
                    policy.megatron_cfg.scheduler,
                    step * config.updates_per_step + update,
                    updates=steps * config.updates_per_step,
                )
                parts[-1] |= {"lr": lr, "grad_norm": optimizer.step(lr)}

            # -- what there is to tell about the step
            figures |= merge_metrics(parts) | {
                "start_tokens": memory.start_tokens,
                "epoch": order.epoch(step),
                "timing/train/generation": drawn - begun,
                "timing/train/judge": judged_at - drawn,
                "timing/train/policy_training": time.monotonic() - judged_at,
            }
            signs = find_signs(figures)
            figures |= {f"hacking/sign_{sign.name}": 1.0 for sign in signs}
            for sign in signs:
                if sign.name not in memory.signs:
                    memory.signs.append(sign.name)
                    ctx.say(f"step {step + 1}: {sign}")
            ctx.metrics.log(step + 1, **figures | (gate if step == 0 else {}))
            rows = sample_table(rollouts, judged, lessons)
            if ctx.is_first:
                write_samples(ctx.run_dir, step + 1, rows)
            ctx.say(f"step {step + 1}: {describe_samples(rows, text='answer')}")
            ctx.progress(
                step + 1,
                steps,
                **({"reward": figures["reward"]} if "reward" in figures else {}),
                kl=figures.get("hacking/kl_to_start", 0.0),
                tokens=figures["mean_gen_tokens_per_sample"],
            )

    # -- what is produced: the last weights, and how they came to be
    output, judge = ctx.output("model"), find_judge(ctx)
    save_model(model, output.path, config=sizes, tokenizer=source.path / TOKENIZER)
    dist.barrier()
    lines = ctx.metrics.history() if ctx.is_first else []
    if ctx.is_first:
        plot.draw(lines, ctx.run_dir)
    output.note(
        weights_digest=weights_digest(model),
        parent_weights_digest=str(
            source.facts.get("weights_digest") or weights_digest(source.path)
        ),
        judge=memory.judge,
        judge_digest=judge.digest if judge else None,
        judge_card=dict(read_card(judge)),
        steps=steps,
        **describe(tokenizer, chat),
    )
    ctx.summarise(
        **summary(memory.seen),
        **{f"judge_{name}": value for name, value in sum_failures(lines).items()},
        steps=steps,
        prompts=steps * grpo.num_prompts_per_step,
    )


def wants_look(config: Config, step: int, last: int) -> bool:
    """Whether the held-out prompts are answered after ``step`` steps."""
    grpo = config.grpo
    if step in (0, last) and (grpo.val_at_end if step else grpo.val_at_start):
        return True
    return bool(step > 0 and step >= grpo.val_start_at and grpo.val_period) and (
        step % grpo.val_period == 0
    )


def nothing_to_learn(step: int, flat: int) -> Problem:
    """Steps in which all answers of every group were worth the same."""
    return Problem(
        where=f"step {step}",
        key="judge.flat_steps",
        what=f"there was no difference in any group of answers for {flat} steps",
        fix="see what the judge says of the samples in samples/, and how different they are",
    )
