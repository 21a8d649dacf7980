"""``eval/arena``: which of two models gives the better answers?

Both answer the same held-out prompts with the same random streams, and a judge compares each pair
of answers in both orders. The win rate (ties are halves) comes with an interval over prompts. Where
a truth is at hand it is asked too: its own win rate, and how often the judge sides with it.

Kept from MT-Bench (Zheng et al. 2023): pairwise comparison in both orders, a contradiction is a
tie. Left out: AlpacaEval's regression on length, which needs many models; win rates of the longer
and of the shorter answers are told instead.

Shape legend: ``_P`` prompts, ``_G`` samples of a prompt.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from nemotron_style.runtime.errors import InputError, Problem, StepFailed
from nemotron_style.runtime.step.context import StepContext
from nemotron_style.steps.blocks.checkpoint.model_checkpoint import weights_digest
from nemotron_style.steps.blocks.data.conversation import Conversation
from nemotron_style.steps.blocks.data.jsonl import write_rows
from nemotron_style.steps.blocks.data.sample_order import permutation
from nemotron_style.steps.blocks.data.toy_truth import Truth, load_truth
from nemotron_style.steps.blocks.judge.client import JudgeClient, JudgeFailure
from nemotron_style.steps.blocks.model.parallel import initialize
from nemotron_style.steps.eval.arena.answer import SLOTS, draw_shards, plan_shards, read_bouts
from nemotron_style.steps.eval.arena.config import Config
from nemotron_style.steps.eval.arena.judging import (
    Digests,
    Found,
    connect,
    judge_all,
    known_digests,
    meet,
    refuse_undecided,
)
from nemotron_style.steps.eval.arena.match import Bout, helpfulness, rule
from nemotron_style.steps.eval.arena.metrics import count_answers, count_judge, count_truth
from nemotron_style.steps.eval.arena.plot import draw_arena
from nemotron_style.steps.eval.arena.prompt import Reader, read_prompts
from nemotron_style.steps.eval.arena.samples import sample_rows, sample_table


def run(config: Config, ctx: StepContext) -> None:
    """Check everything, sample from both models, have each pair judged, count and write."""
    initialize(seed=config.seed)
    models = identify(ctx)
    truth_input = ctx.optional_input("truth")
    truth = load_truth(truth_input.path) if truth_input else None
    prompts = choose_prompts(config, ctx, truth)
    shards = plan_shards(config, prompts)
    with connect(config, ctx) as judge:
        meet(judge, config, ctx, models=models)
        for done in draw_shards(config, ctx, shards):
            ctx.progress(done, len(shards), shards=done)
        bouts = read_bouts(ctx, shards, prompts)
        refuse_silence(bouts)
        found = ask_judge(config, ctx, judge, bouts=bouts, before=len(shards))
    rulings = [rule(bout, said) for bout, said in zip(bouts, found, strict=True)]
    failures = [one for one in chain.from_iterable(found) if isinstance(one, JudgeFailure)]
    refuse_undecided(rulings, failures)
    levels = [helpfulness(truth, bout) for bout in bouts] if truth else None
    results = count_answers(bouts) | {"judge": count_judge(bouts, rulings, failures)}
    if levels is not None:
        results["truth"] = count_truth(bouts, rulings, levels)
    rows = sample_rows(bouts, rulings, levels)
    write(config, ctx.output("results").path, bouts=bouts, rows=rows, results=results)
    summarise(ctx, results)


def identify(ctx: StepContext) -> dict[str, Digests]:
    """Every digest that each model goes by; that of its weights goes with the results.

    Raises InputError where both models are the same.
    """
    weights, found = {}, {}
    for slot in SLOTS:
        artifact = ctx.input(slot)
        weights[slot] = artifact.facts.get("weights_digest") or weights_digest(artifact.path)
        found[slot] = known_digests(artifact) | {weights[slot]}
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
    return found


def choose_prompts(config: Config, ctx: StepContext, truth: Truth | None) -> list[Conversation]:
    """``data.max_prompts`` of the file's prompts, in an order that the seed decides."""
    readers = [
        Reader.of(
            slot,
            ctx.input(slot).path,
            tokens=config.model.data.chat_prompt_tokens,
            max_new_tokens=config.sampling.max_new_tokens,
        )
        for slot in SLOTS
    ]
    prompts = read_prompts(ctx.input("prompts").path, readers, truth=truth)
    order = permutation(len(prompts), config.seed, 0)[: config.data.max_prompts]
    return [prompts[index] for index in order]


def refuse_silence(bouts: Sequence[Bout]) -> None:
    """Fail when neither model ever finished an answer."""
    if any(bout.model is not None or bout.baseline is not None for bout in bouts):
        return
    raise StepFailed(
        Problem(
            key="sampling.max_new_tokens",
            what="no answer of either model finished",
            got=f"{2 * len(bouts)} answers",
            fix="raise it, or train the models to stop",
        )
    )


def ask_judge(
    config: Config, ctx: StepContext, judge: JudgeClient, *, bouts: Sequence[Bout], before: int
) -> list[list[Found]]:
    """What the judge said of each bout, an entry an order; none where it was not needed.

    ``before`` is the last step of the metrics so far.
    """
    asked = [bout.ask(config.seed) for bout in bouts]
    questions = list(chain.from_iterable(asked))
    budget = config.judge.failure_budget
    found: list[Found] = []
    lots = judge_all(judge, questions, budget=budget, stopping=lambda: ctx.stopping)
    for number, lot in enumerate(lots, start=before + 1):
        found += lot
        failed = sum(isinstance(one, JudgeFailure) for one in found)
        ctx.metrics.log(number, judgements=len(found), failed_judgements=failed)
        ctx.progress(len(found), len(questions), judgements=len(found), failed=failed)
    told = ", ".join(f"{name} {count}" for name, count in sorted(judge.counts.items()))
    ctx.say(f"judge {judge.model}: {told}")
    answers = iter(found)
    return [[next(answers) for _ in own] for own in asked]


def write(
    config: Config,
    path: Path,
    *,
    bouts: Sequence[Bout],
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
    said = {slot: [getattr(bout, slot) for bout in bouts] for slot in ("model", "baseline")}
    lengths = {slot: [len(text) for text in texts if text] for slot, texts in said.items()}
    draw_arena(path / "arena.png", rates=rates, lengths=lengths)


def summarise(ctx: StepContext, results: dict[str, Any]) -> None:
    """The figures that are looked for, into the summary."""
    figures: dict[str, Any] = {}
    for who in ("judge", "truth"):
        if who not in results:
            continue
        found, conclusion = results[who]["win_rate"], results[who]["conclusion"]
        prefix = "" if who == "judge" else "truth_"
        figures |= {
            f"{prefix}win_rate": found["rate"],
            f"{prefix}win_rate_low": found["low"],
            f"{prefix}win_rate_high": found["high"],
            f"{prefix}conclusion": conclusion,
        }
        ctx.say(
            f"{who}: win rate {found['rate']:.3f} over the baseline in {found['pairs']} pairs "
            f"(95%: {found['low']:.3f} to {found['high']:.3f}): {conclusion}"
        )
    if "truth" in results:
        figures["judge_agreement"] = results["truth"]["judge_agreement"]["rate"]
    judge = results["judge"]
    ctx.summarise(
        **figures,
        order_consistency=judge["order_consistency"],
        failed_judgements=judge["failures"]["judgements"],
        pairs=results["pairs"],
        length_model=results["lengths"]["model"],
        length_baseline=results["lengths"]["baseline"],
    )
