"""What must hold before the first update: who trains, who judges, and on what."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from nemotron_style.runtime.errors import InputError, Problem, StepFailed, raise_all
from nemotron_style.runtime.step.context import StepContext
from nemotron_style.runtime.store.record import Artifact
from nemotron_style.steps.blocks.data.prompt import Prompt, count_shared
from nemotron_style.steps.blocks.generation.logprob_gap import measure_gap
from nemotron_style.steps.blocks.loss.kl import estimate_kl
from nemotron_style.steps.blocks.training.start_policy import StartPolicy
from nemotron_style.steps.rl.rlhf.config import Config
from nemotron_style.steps.rl.rlhf.pairwise_judge import PairwiseJudge, find_judge, read_card
from nemotron_style.steps.rl.rlhf.rollout import Rollout
from nemotron_style.steps.rl.rlhf.train_sample import compute_logprobs, to_samples

PROBED = 4
"""Prompts of the first step that are answered and judged before the first update."""

SAME = 1e-6
"""Nats a token that rounding may put between a model and its copy."""


def check_job(config: Config, ctx: StepContext) -> None:
    """Refuse other processes than the config asks for, and inputs that must not be one thing."""
    problems = [*_machine(config, ctx), *_validation(config, ctx)]
    judge = find_judge(ctx)
    if judge is not None:
        problems += [*_confused(ctx.input("model"), judge), *_card(config, judge)]
    elif config.judge.min_accuracy is not None:
        problems.append(_no_card("a judge behind judge.url has no card"))
    raise_all(InputError, problems)


def _machine(config: Config, ctx: StepContext) -> Iterator[Problem]:
    asked = config.cluster.num_nodes * config.processes
    if asked != ctx.world_size:
        yield Problem(
            key="cluster.num_nodes x processes",
            what="the run was started with another number of processes",
            got=str(asked),
            allowed=str(ctx.world_size),
        )
    if config.policy.half and not torch.cuda.is_available():
        yield Problem(
            key="policy.precision",
            what="bfloat16 keeps float32 master weights, which needs a CUDA device",
            got=config.policy.precision,
            fix="set policy.precision=float32",
        )


def _validation(config: Config, ctx: StepContext) -> Iterator[Problem]:
    wanted = config.grpo.val_at_start or config.grpo.val_at_end
    if wanted and ctx.optional_input("validation") is None:
        what = "is asked for by grpo.val_at_start or grpo.val_at_end, and no prompts are given"
        yield Problem(key="data.validation.data_path", what=what)


def check_held_out(
    config: Config, ctx: StepContext, train: Sequence[Prompt], held_out: Sequence[Prompt]
) -> None:
    """Refuse held-out prompts that are all trained on, and say how many are.

    Whichever file they stand in: what was trained on says nothing about other prompts.
    """
    shared = count_shared(train, held_out)
    if not shared or config.data.allow_train_as_validation:
        return
    if shared < len(held_out):
        ctx.say(f"warning: {shared} of {len(held_out)} held-out prompts are trained on too")
        return
    raise InputError(
        Problem(
            key="data.validation.data_path",
            what="train_used_as_validation_unintentionally: the prompts are those of training",
            got=f"{ctx.input('validation').ref}: {shared} of {shared} are in the other file too",
            fix="give other prompts, or set data.allow_train_as_validation=true",
        )
    )


def _confused(policy: Artifact, judge: Artifact) -> Iterator[Problem]:
    names = ("weights_digest", "source_weights_digest")
    own = {policy.digest, policy.facts.get("weights_digest")} - {None}
    if own & {judge.digest, *(judge.facts.get(name) for name in names)}:
        yield Problem(
            key="judge.model",
            what="reward_model_policy_confused: policy and judge are the same weights",
            got=judge.ref,
            fix="judge with another model than the one that is trained",
        )


def _card(config: Config, judge: Artifact) -> Iterator[Problem]:
    floor, card = config.judge.min_accuracy, read_card(judge)
    if floor is None:
        return
    if "accuracy" not in card:
        yield _no_card(f"{judge.ref} has no judge_card in its record")
    elif not card["accuracy"] >= floor:
        yield Problem(
            key="judge.min_accuracy",
            what="the judge is right less often than is asked for",
            got=f"{card['accuracy']:.3f} ({judge.ref})",
            allowed=f"{floor:g} or more",
            fix="train a better judge, or lower the floor knowing what it means",
        )


def _no_card(what: str) -> Problem:
    return Problem(
        key="judge.min_accuracy",
        what=f"{what}, so nobody knows how often it is right",
        fix="measure it with judge/card, or set judge.min_accuracy=null to go without",
    )


def check_same_judge(before: str, now: str) -> None:
    """Refuse to go on with another judge than the one that gave the rewards so far."""
    if before != now:
        raise InputError(
            Problem(
                key="judge",
                what="the run was trained with another judge than the one that answers",
                got=now,
                allowed=before,
                fix="serve that one, or begin anew with --fresh",
            )
        )


def run_gate(
    config: Config,
    policy: nn.Module,
    reference: StartPolicy | None,
    judge: PairwiseJudge,
    probes: Sequence[Rollout],
) -> dict[str, float]:
    """Refuse to train where sampler, trainer, reference and judge disagree; the gate's metrics.

    ``probes`` are rollouts of the policy. ``reference`` is None in a run that goes on: its policy
    is not the reference any more, and its judge was checked at the start.
    """
    samples = to_samples(probes)
    generation = torch.cat([one.generation_T for one in samples]).double()
    trainer = torch.cat(compute_logprobs(policy, samples, config.policy)).double()
    gap = measure_gap(generation, trainer)
    backend = config.policy.generation.backend
    gap.require(config.gate, engine=backend, key="agreement_limit")
    gate = {"gate/token_mult_prob_error": gap.token_mult_prob_error}
    if reference is not None:
        with reference.use() as start:
            frozen = torch.cat(compute_logprobs(start, samples, config.policy)).double()
        gate["gate/kl_to_start"] = check_reference(trainer, frozen)
        gate |= check_judge(config, judge, probes)
    return gate


def check_reference(policy: Tensor, reference: Tensor) -> float:
    """Refuse a reference that is not the policy before its first update: KL of a token, about 0."""
    kl = float(estimate_kl(policy, reference).mean())
    if not abs(kl) <= SAME:
        raise StepFailed(
            Problem(
                key="kl_to_start",
                what="the reference is not the model that the policy starts from",
                got=f"{kl:.3g} nats a token",
                allowed="0",
            )
        )
    return kl


def check_judge(
    config: Config, judge: PairwiseJudge, probes: Sequence[Rollout]
) -> dict[str, float]:
    """Refuse a judge whose answers cannot be read, or that contradicts itself in the other order.

    Raises ``JudgeUnavailable`` for the first, ``StepFailed`` for the second.
    """
    metrics = judge.compare([one.answer_group for one in probes], step=0, both_orders=True).metrics
    share = metrics.get("judge/swap_agreement", 1.0)
    if share < config.judge.min_swap_agreement:
        raise StepFailed(
            Problem(
                key="judge.min_swap_agreement",
                what="asked about the same two answers in the other order, the judge prefers "
                "the other one too often: it looks at the place and not at the answer",
                got=f"{share:.2f}",
                allowed=f"{config.judge.min_swap_agreement:g} or more",
                fix="take a better judge, or lower the floor knowing what it means",
            )
        )
    return {f"gate/{name.partition('/')[2]}": value for name, value in metrics.items()}


def count_flat_steps(config: Config, step: int, metrics: Mapping[str, float], before: int) -> int:
    """How many steps in a row had no difference in the rewards of any group, this one included.

    All their advantages are 0. Raises StepFailed at ``judge.flat_steps`` of them.
    """
    if metrics.get("hacking/zero_std_groups") != 1:
        return 0
    if before + 1 >= config.judge.flat_steps:
        raise StepFailed(
            Problem(
                where=f"step {step}",
                key="judge.flat_steps",
                what=f"there was no difference in any group of answers for {before + 1} steps",
                fix="see what the judge says of the samples in samples/, and how different they "
                "are",
            )
        )
    return before + 1
