"""``eval/arena``: which of two models gives the better answers?

Both answer the same held-out prompts with the same random streams; a match is their answers to one
prompt. A judge gets each match as two pairs, one in each order. The win rate (ties are halves)
comes with an interval over prompts. Where a truth is at hand it is asked too: its own win rate, and
how often the judge sides with it.

Kept from MT-Bench (Zheng et al. 2023): pairwise comparison in both orders, a contradiction is a
tie. Left out: AlpacaEval's regression on length, which needs many models; win rates of the longer
and of the shorter answers are reported instead.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any

from nemotron_style.runtime.errors import InputError, Problem, StepFailed
from nemotron_style.runtime.step.context import StepContext
from nemotron_style.steps.blocks.checkpoint.model_checkpoint import recorded_weights_digest
from nemotron_style.steps.blocks.data.conversation import Conversation
from nemotron_style.steps.blocks.data.jsonl import write_rows
from nemotron_style.steps.blocks.data.layouts.reader import RowReader
from nemotron_style.steps.blocks.data.sample_order import permutation
from nemotron_style.steps.blocks.data.toy_truth import Truth, load_truth
from nemotron_style.steps.blocks.judge.client import JudgeClient, JudgeFailure
from nemotron_style.steps.blocks.model.parallel import initialize
from nemotron_style.steps.eval.arena.answer import SAMPLED, plan_shards, read_matches, sample_shards
from nemotron_style.steps.eval.arena.config import Config
from nemotron_style.steps.eval.arena.judging import (
    Digests,
    artifact_digests,
    check_judge,
    connect,
    judge_all,
    refuse_undecided,
)
from nemotron_style.steps.eval.arena.match import (
    SLOTS,
    Judgement,
    Match,
    decide,
    true_helpfulness,
)
from nemotron_style.steps.eval.arena.metrics import count_answers, count_judge, count_truth
from nemotron_style.steps.eval.arena.plot import draw_arena
from nemotron_style.steps.eval.arena.prompt import PromptLimit, read_prompts
from nemotron_style.steps.eval.arena.samples import sample_rows, sample_table, write_words


def run(config: Config, ctx: StepContext) -> None:
    """Check everything, sample from both models, have each match judged, count and write."""
    # -- both models, the prompts and the judge: all checked before anything is sampled
    initialize(seed=config.seed)
    models = identify_models(ctx)
    truth_input = ctx.optional_input("truth")
    truth = load_truth(truth_input.path) if truth_input else None
    prompts = choose_prompts(config, ctx, truth)
    shards = plan_shards(config, prompts)
    with connect(config, ctx) as judge:
        check_judge(judge, config, ctx, models=models)

        # -- two answers to each prompt, and the judge's word on them in both orders
        for done in sample_shards(config, ctx, shards):
            ctx.progress(done, len(shards), shards=done)
        matches = read_matches(ctx, shards, prompts)
        refuse_silence(matches)
        judgements = judge_matches(config, ctx, judge, matches=matches, last_step=len(shards))

    # -- who won, by the judge and by the truth
    decisions = [decide(match, own) for match, own in zip(matches, judgements, strict=True)]
    failures = [each for each in chain(*judgements) if isinstance(each, JudgeFailure)]
    refuse_undecided(decisions, failures)
    levels = [true_helpfulness(truth, match) for match in matches] if truth else None
    results = count_answers(matches) | {"judge": count_judge(matches, decisions, failures)}
    if levels is not None:
        results["truth"] = count_truth(matches, decisions, levels)

    rows = sample_rows(matches, decisions, levels)
    write_words(ctx.run_dir, judgements)
    write_results(config, ctx.output("results").path, matches=matches, rows=rows, results=results)
    summarise(ctx, results)


def identify_models(ctx: StepContext) -> dict[str, Digests]:
    """Every digest that each model goes by; that of its weights goes with the results.

    Raises InputError where both models are the same.
    """
    weights, digests = {}, {}
    for slot in SAMPLED:
        artifact = ctx.input(slot)
        weights[slot] = recorded_weights_digest(artifact)
        digests[slot] = artifact_digests(artifact) | {weights[slot]}
        ctx.output("results").note(**{f"{slot}_digest": weights[slot], f"{slot}_ref": artifact.ref})
    if weights["model"] == weights["baseline"]:
        raise InputError(
            Problem(
                key="model, baseline",
                what="both have the same weights, so there is nothing to compare",
                got=f"{ctx.input('model').ref} and {ctx.input('baseline').ref}",
                fix="give the model that training started from as the baseline",
            )
        )
    return digests


def choose_prompts(config: Config, ctx: StepContext, truth: Truth | None) -> list[Conversation]:
    """``data.max_prompts`` of the file's prompts, in an order that the seed decides."""
    limits = [
        PromptLimit.of(
            slot,
            ctx.input(slot).path,
            tokens=config.model.data.chat_prompt_tokens,
            max_new_tokens=config.sampling.max_new_tokens,
        )
        for slot in SAMPLED
    ]
    reader = RowReader("prompts", config.data, "data")
    prompts = read_prompts(ctx.input("prompts").path, limits, truth=truth, reader=reader)
    reader.report.tell(ctx, "prompts", output="results")
    order = permutation(len(prompts), config.seed, 0)[: config.data.max_prompts]
    return [prompts[index] for index in order]


def refuse_silence(matches: Sequence[Match]) -> None:
    """Fail when neither model ever finished an answer."""
    if all(match.model is None and match.baseline is None for match in matches):
        raise StepFailed(
            Problem(
                key="sampling.max_new_tokens",
                what="no answer of either model finished",
                got=f"{2 * len(matches)} answers",
                fix="raise it, or train the models to stop",
            )
        )


def judge_matches(
    config: Config,
    ctx: StepContext,
    judge: JudgeClient,
    *,
    matches: Sequence[Match],
    last_step: int,
) -> list[list[Judgement]]:
    """The judgements of each match, an entry a pair; none where no judge was needed.

    ``last_step`` is that of the metrics so far.
    """
    pairs = [match.pairs(config.seed) for match in matches]
    questions = list(chain(*pairs))
    budget = config.judge.failure_budget
    judgements: list[Judgement] = []
    rounds = judge_all(judge, questions, budget=budget, stopping=lambda: ctx.stopping)
    for step, fresh in enumerate(rounds, start=last_step + 1):
        judgements += fresh
        failed = sum(isinstance(each, JudgeFailure) for each in judgements)
        ctx.metrics.log(step, judgements=len(judgements), failed_judgements=failed)
        ctx.progress(len(judgements), len(questions), judgements=len(judgements), failed=failed)
    counts = ", ".join(f"{name} {count}" for name, count in sorted(judge.counts.items()))
    ctx.say(f"judge {judge.model}: {counts or 'not asked, no match needed it'}")
    remaining = iter(judgements)
    return [list(islice(remaining, len(own))) for own in pairs]


def write_results(
    config: Config,
    path: Path,
    *,
    matches: Sequence[Match],
    rows: Sequence[dict[str, Any]],
    results: dict[str, Any],
) -> None:
    """``results.json``, ``samples.jsonl``, ``samples.md`` and ``arena.png``."""
    (path / "results.json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    write_rows(path / "samples.jsonl", rows)
    table = sample_table(rows, shown=config.shown_samples)
    (path / "samples.md").write_text(table, encoding="utf-8")
    judge = results["judge"]
    rates = {"judge": judge["win_rate"]}
    rates |= {name.replace("_", " "): rate for name, rate in judge["by_length"].items()}
    if "truth" in results:
        rates["truth"] = results["truth"]["win_rate"]
    texts = {slot: [getattr(match, slot) for match in matches] for slot in SLOTS}
    lengths = {slot: [len(text) for text in answers if text] for slot, answers in texts.items()}
    draw_arena(path / "arena.png", rates=rates, lengths=lengths)


def summarise(ctx: StepContext, results: dict[str, Any]) -> None:
    """The figures that are looked for, into the summary."""
    figures: dict[str, Any] = {}
    for name, prefix in (("judge", ""), ("truth", "truth_")):
        if name not in results:
            continue
        rate, conclusion = results[name]["win_rate"], results[name]["conclusion"]
        figures |= {
            f"{prefix}win_rate": rate["rate"],
            f"{prefix}win_rate_low": rate["low"],
            f"{prefix}win_rate_high": rate["high"],
            f"{prefix}conclusion": conclusion,
        }
        ctx.say(
            f"{name}: win rate {rate['rate']:.3f} over the baseline in {rate['pairs']} pairs "
            f"(95%: {rate['low']:.3f} to {rate['high']:.3f}): {conclusion}"
        )
    if "truth" in results:
        figures["judge_agreement"] = results["truth"]["judge_agreement"]["rate"]
    ctx.summarise(
        **figures,
        order_consistency=results["judge"]["order_consistency"],
        failed_judgements=results["judge"]["failures"]["judgements"],
        pairs=results["pairs"],
        length_model=results["lengths"]["model"],
        length_baseline=results["lengths"]["baseline"],
    )
