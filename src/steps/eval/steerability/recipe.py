"""``eval/steerability``: does a response have the attributes that were requested?

Every held-out prompt is combined with every label, the model answers, and the attributes of the
answer come from the truth, or else from an attribute model. A baseline answers the same requests
with the same random streams, so the difference is one of pairs. An unfinished response is a miss:
it is what a user would get.

Source: SteerLM 2.0 (HelpSteer2) judges by benchmarks with an LLM; here the question is narrower
and has an answer that can be counted, with an interval.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from nemotron_style.runtime.errors import InputError, Problem
from nemotron_style.runtime.step.context import StepContext
from nemotron_style.steps.blocks.checkpoint.model_checkpoint import recorded_weights_digest
from nemotron_style.steps.blocks.data.conversation import Conversation, parse_prompt_row
from nemotron_style.steps.blocks.data.jsonl import write_rows
from nemotron_style.steps.blocks.data.layouts.reader import RowReader
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
    compare_in_words,
    count_outcomes,
    hit_rate,
    parse_label,
)
from nemotron_style.steps.eval.steerability.plot import draw_labels
from nemotron_style.steps.eval.steerability.samples import sample_rows, sample_table

Labeller = Callable[[Sequence[tuple[Conversation, str]]], list[Attributes]]
"""Names the attributes of answered conversations."""


def run(config: Config, ctx: StepContext) -> None:
    """Sample from the baseline and the model, count hits, and write figures and samples."""
    initialize(seed=config.seed)
    truth_input = ctx.optional_input("truth")
    truth = load_truth(truth_input.path) if truth_input else None
    labeller, judged_by = choose_labeller(config, ctx, truth)
    requests = plan_requests(config, ctx, truth)

    slots = [slot for slot in ("baseline", "model") if ctx.optional_input(slot)]
    outcomes: dict[str, list[Outcome]] = {}
    for number, slot in enumerate(slots):
        ctx.progress(number, len(slots))
        sampler = load_sampler(config, ctx, slot)
        outcomes[slot] = sample_outcomes(config, sampler, requests=requests, labeller=labeller)
        joint = hit_rate([outcome.hit(JOINT) for outcome in outcomes[slot]])
        ctx.metrics.log(number + 1, joint_hit_rate=joint["rate"])
        ctx.say(f"{slot}: {joint['rate']:.1%} of {joint['total']} responses are as requested")
    ctx.progress(len(slots), len(slots))

    results = count_outcomes(outcomes) | {"judged_by": judged_by}
    path = ctx.output("results").path
    write_results(config, path, requests=requests, outcomes=outcomes, results=results)
    summarise(ctx, results)


def choose_labeller(config: Config, ctx: StepContext, truth: Truth | None) -> tuple[Labeller, str]:
    """The truth where there is one, else an attribute model; and its name in the results."""
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
    sampler = load_sampler(config, ctx, "attribute")
    return (
        lambda pairs: [parse_label(text) for text in sampler.predict_labels(pairs)]
    ), "attribute"


def _parse_prompt(row: Mapping[str, Any]) -> Conversation:
    given = parse_prompt_row(row)
    return Conversation(given.system, given.turns)


def plan_requests(config: Config, ctx: StepContext, truth: Truth | None) -> list[Request]:
    """Every prompt with every label, ``num_samples`` times."""
    reader = RowReader("prompts", config.data, "data")
    prompts = list(dict.fromkeys(reader.read(ctx.input("prompts").path, _parse_prompt)))
    reader.report.tell(ctx, "prompts", output="results")
    order = permutation(len(prompts), config.seed, 0)[: config.data.max_prompts]
    labels: Sequence[str] = config.data.labels
    if not labels and truth is not None:
        labels = [truth.format(label) for label in truth.reachable_labels()]
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


def load_sampler(config: Config, ctx: StepContext, slot: str) -> ChatSampler:
    """The model of a slot, ready to answer; its digest goes with the results."""
    artifact = ctx.input(slot)
    digest = recorded_weights_digest(artifact)
    ctx.output("results").note(**{f"{slot}_digest": digest, f"{slot}_ref": artifact.ref})
    return load_chat_sampler(
        artifact.path,
        tokens=config.model.data.chat_prompt_tokens,
        half=config.trainer.half,
        max_rows=config.sampling.max_rows,
    )


def sample_outcomes(
    config: Config, sampler: ChatSampler, *, requests: Sequence[Request], labeller: Labeller
) -> list[Outcome]:
    """One outcome for each request, in their order."""
    sampling = config.sampling
    groups = sampler.sample(
        requests,
        samples=1,  # those of a prompt are requests with seeds of their own
        max_new_tokens=sampling.max_new_tokens,
        temperature=sampling.temperature,
    )
    texts = [answer.text if answer else None for (answer,) in groups]
    finished = [
        (request.conversation, text)
        for request, text in zip(requests, texts, strict=True)
        if text is not None
    ]
    actual = iter(labeller(finished))
    return [
        Outcome(
            label=request.label or "",
            requested=parse_label(request.label or ""),
            text=text,
            actual=None if text is None else next(actual),
        )
        for request, text in zip(requests, texts, strict=True)
    ]


def write_results(
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
    figures: dict[str, Any] = {}
    if "differences" in results:
        joint = results["differences"][JOINT]
        figures = {
            "joint_difference": joint["difference"],
            "joint_difference_low": joint["low"],
            "joint_difference_high": joint["high"],
        }
        ctx.say(compare_in_words(joint))
    # The joint rate comes first in each slot's rates.
    for name in results["rates"]["model"]:
        for slot, rates in results["rates"].items():
            figures[f"{name}_hit_rate_{slot}"] = rates[name]["rate"]
    ctx.summarise(**figures, responses=results["responses"])
