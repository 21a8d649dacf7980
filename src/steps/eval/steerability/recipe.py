"""``eval/steerability``: does a response have the attributes that were asked for?

Every held-out prompt is combined with every label, the model answers, and the attributes of the
answer are looked up in the truth, or else named by an attribute model. A baseline answers the
same requests with the same random streams, so the difference is one of pairs. A response that
does not finish is a miss: it is what a user would get.

Source: SteerLM 2.0 (HelpSteer2) judges by benchmarks with an LLM; here the question is narrower
and has an answer that can be counted, with an interval.

Shape legend: ``_P`` prompts (requests), ``_G`` samples of a request.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from nemotron_style.runtime.errors import InputError, Problem
from nemotron_style.runtime.step.context import StepContext
from nemotron_style.steps.blocks.checkpoint.model_checkpoint import weights_digest
from nemotron_style.steps.blocks.data.conversation import Conversation, parse_prompt
from nemotron_style.steps.blocks.data.jsonl import read_rows, write_rows
from nemotron_style.steps.blocks.data.sample_order import permutation
from nemotron_style.steps.blocks.data.seed import seed_of
from nemotron_style.steps.blocks.data.toy_truth import Truth, load_truth
from nemotron_style.steps.blocks.generation.chat_sampler import (
    ChatSampler,
    Request,
    load_chat_sampler,
)
from nemotron_style.steps.blocks.model.parallel import initialize
from nemotron_style.steps.eval.steerability.config import Config
from nemotron_style.steps.eval.steerability.metrics import (
    JOINT,
    Attributes,
    Outcome,
    differences,
    rates,
    rates_by_label,
    read_label,
)
from nemotron_style.steps.eval.steerability.plot import draw_labels
from nemotron_style.steps.eval.steerability.samples import sample_rows, sample_table

Judge = Callable[[Sequence[tuple[Conversation, str]]], list[Attributes]]
"""The attributes of answered conversations."""


def run(config: Config, ctx: StepContext) -> None:
    """Sample from the model and the baseline, judge, count, and write figures and samples."""
    initialize(seed=config.seed)
    truth_input = ctx.optional_input("truth")
    truth = load_truth(truth_input.path) if truth_input else None
    judge, judged_by = choose_judge(config, ctx, truth)
    requests = plan_requests(config, ctx, truth)

    slots = [slot for slot in ("baseline", "model") if ctx.optional_input(slot)]
    outcomes: dict[str, list[Outcome]] = {}
    for number, slot in enumerate(slots):
        ctx.progress(number, len(slots))
        sampler = load(config, ctx, slot)
        outcomes[slot] = answer(config, sampler, requests=requests, judge=judge)
        joint = rates(outcomes[slot])[JOINT]
        ctx.metrics.log(number + 1, joint_hit_rate=joint["rate"])
        ctx.say(f"{slot}: {joint['rate']:.3f} of {joint['total']} responses are as asked")
    ctx.progress(len(slots), len(slots))

    results = count(outcomes) | {"judged_by": judged_by}
    write(config, ctx.output("results").path, requests=requests, outcomes=outcomes, results=results)
    summarise(ctx, results)


def choose_judge(config: Config, ctx: StepContext, truth: Truth | None) -> tuple[Judge, str]:
    """The truth where it is given; else an attribute model names what it sees."""
    if truth is not None:
        return (lambda pairs: [truth.score(x.turns[-1].value, y) for x, y in pairs]), "truth"
    if ctx.optional_input("attribute") is None:
        raise InputError(
            Problem(
                where="eval/steerability",
                key="truth, attribute",
                what="nothing can tell which attributes a response has",
                fix="give -i truth=REF, or -i attribute=REF with a model that names attributes",
            )
        )
    sampler = load(config, ctx, "attribute")
    return (lambda pairs: [read_label(text) for text in sampler.predict_labels(pairs)]), "attribute"


def plan_requests(config: Config, ctx: StepContext, truth: Truth | None) -> list[Request]:
    """Every prompt with every label that is asked of it, ``num_samples`` times."""
    rows = read_rows(ctx.input("prompts").path, parse_prompt)
    prompts = list(dict.fromkeys(rows))
    order = permutation(len(prompts), config.seed, 0)[: config.data.max_prompts]
    labels = config.data.labels or reachable_labels(truth)
    if not labels:
        raise InputError(
            Problem(
                key="data.labels",
                what="there is no label to ask for",
                fix="list labels there, or give a truth",
            )
        )
    return [
        Request(prompts[index], label, seed_of(config.seed, index, label, number))
        for index in order
        for label in labels
        for number in range(config.sampling.num_samples)
    ]


def reachable_labels(truth: Truth | None) -> list[str]:
    """The labels that some response can have, as text; none without a truth."""
    return [truth.format(label) for label in truth.reachable_labels()] if truth else []


def load(config: Config, ctx: StepContext, slot: str) -> ChatSampler:
    """The model of a slot; its digest goes with the results."""
    artifact = ctx.input(slot)
    sampler = load_chat_sampler(
        artifact.path,
        tokens=config.model.data.chat_prompt_tokens,
        half=config.trainer.half,
    )
    sampler.max_rows = config.sampling.max_rows
    digest = artifact.facts.get("weights_digest") or weights_digest(artifact.path)
    ctx.output("results").note(**{f"{slot}_digest": digest, f"{slot}_ref": artifact.ref})
    return sampler


def answer(
    config: Config, sampler: ChatSampler, *, requests: Sequence[Request], judge: Judge
) -> list[Outcome]:
    """One outcome for each request, in their order."""
    sampling = config.sampling
    groups = sampler.sample(
        requests,
        samples=1,
        max_new_tokens=sampling.max_new_tokens,
        temperature=sampling.temperature,
    )
    answers = [group[0] for group in groups]
    pairs = [
        (request.conversation, said.text)
        for request, said in zip(requests, answers, strict=True)
        if said is not None
    ]
    judged = iter(judge(pairs))
    return [
        Outcome(
            label=request.label or "",
            wanted=read_label(request.label or ""),
            text=said.text if said else None,
            got=next(judged) if said else None,
        )
        for request, said in zip(requests, answers, strict=True)
    ]


def count(outcomes: dict[str, list[Outcome]]) -> dict[str, Any]:
    """Everything of ``results.json`` that is counted."""
    results: dict[str, Any] = {
        "responses": len(outcomes["model"]),
        "rates": {slot: rates(found) for slot, found in outcomes.items()},
        "labels": {slot: rates_by_label(found) for slot, found in outcomes.items()},
        "unfinished": {
            slot: sum(outcome.got is None for outcome in found) for slot, found in outcomes.items()
        },
    }
    if "baseline" in outcomes:
        results["differences"] = differences(outcomes["baseline"], outcomes["model"])
    return results


def write(
    config: Config,
    path: Path,
    *,
    requests: Sequence[Request],
    outcomes: dict[str, list[Outcome]],
    results: dict[str, Any],
) -> None:
    """``results.json``, ``samples.jsonl``, ``samples.md`` and ``steerability.png``."""
    (path / "results.json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    rows = sample_rows(requests, outcomes)
    write_rows(path / "samples.jsonl", rows)
    table = sample_table(rows, slots=list(outcomes), shown=config.shown_samples)
    (path / "samples.md").write_text(table, encoding="utf-8")
    draw_labels(
        path / "steerability.png",
        model=results["labels"]["model"],
        baseline=results["labels"].get("baseline"),
        title=f"How often a label is followed ({results['responses']} responses a model)",
    )


def summarise(ctx: StepContext, results: dict[str, Any]) -> None:
    """The figures that are looked for, into the summary."""
    rates_by_slot = results["rates"]
    figures: dict[str, Any] = {
        f"{name}_hit_rate_{slot}": found[name]["rate"]
        for name in sorted(rates_by_slot["model"], key=lambda name: name != JOINT)
        for slot, found in rates_by_slot.items()
    }
    figures["responses"] = results["responses"]
    if "differences" in results:
        joint = results["differences"][JOINT]
        figures = {
            "joint_difference": joint["difference"],
            "joint_difference_low": joint["low"],
            "joint_difference_high": joint["high"],
        } | figures
        ctx.say(
            f"joint hit rate: {joint['difference']:+.3f} over the baseline "
            f"(95%: {joint['low']:+.3f} to {joint['high']:+.3f})"
        )
    ctx.summarise(**figures)
