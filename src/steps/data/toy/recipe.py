"""A small corpus of conversations, drawn from a rule that can judge every answer to them.

It stands in for HelpSteer, whose labels it imitates: same form of label, same three kinds of rows
(plain answers, answers with the label before them, answers with the label after them). What it
leaves out is everything that makes real labels doubtful: where an answer is judged, its attributes
are what the truth says. Where an answer is asked for by a label, a quarter of the labels is wrong,
as if by a careless annotator, so that a model trained on the corpus follows labels weakly and
there is something left to gain.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from nemotron_style.runtime.step.context import StepContext
from nemotron_style.steps.blocks.data.jsonl import write_rows
from nemotron_style.steps.blocks.data.sample_order import permutation
from nemotron_style.steps.blocks.data.toy_truth import Truth
from nemotron_style.steps.data.toy.answer import (
    Pair,
    ask,
    sample_any,
    sample_plain,
    sample_varied,
)
from nemotron_style.steps.data.toy.comparison import comparison_rows, heldout_rows
from nemotron_style.steps.data.toy.config import Config, Rows
from nemotron_style.steps.data.toy.vocabulary import ADJECTIVES, CONTEXTS, NOUNS

RowMaker = Callable[[Truth, list[Pair], int, random.Random], Iterator[dict[str, Any]]]
"""A number of rows about random pairs of a list."""


def run(config: Config, ctx: StepContext) -> None:
    """Write the truth, the prompts on both sides of the split, and rows on each side."""
    # -- the rule, and the prompts that training may see
    truth = make_truth(config.contexts)
    seen, heldout = split_pairs(truth, share=config.heldout_share, seed=config.seed)
    (ctx.output("truth").path / "truth.json").write_text(
        truth.model_dump_json(indent=1) + "\n", encoding="utf-8"
    )
    for slot, pairs in (("prompts", seen), ("heldout", heldout)):
        asked = ({"messages": [ask(truth, pair)]} for pair in pairs)
        count = write_rows(ctx.output(slot).path / f"{slot}.jsonl", asked)
        ctx.say(f"{slot}: {count} prompts")

    # -- rows: a stream of random numbers for each slot, so that one's length leaves the others be
    training_rows = partial(make_rows, shares=config.rows)
    slots: dict[str, tuple[RowMaker, list[Pair]]] = {
        "train": (training_rows, seen),
        "validation": (training_rows, heldout),
        # answers of every quality with what they are worth, and two of them compared: for judges
        "rated": (rate_rows, seen),
        "rated_heldout": (rate_rows, heldout),
        "comparisons": (comparison_rows, seen),
        "comparisons_heldout": (heldout_rows, heldout),
    }
    for slot, (make, pairs) in slots.items():
        count, rng = getattr(config.rows, slot), random.Random(f"{config.seed}/{slot}")
        write_rows(ctx.output(slot).path / f"{slot}.jsonl", make(truth, pairs, count, rng))
        ctx.say(f"{slot}: {count} rows")
    ctx.summarise(
        train_rows=config.rows.train,
        validation_rows=config.rows.validation,
        prompts=len(seen),
        heldout_prompts=len(heldout),
        reachable_labels=len(truth.reachable_labels()),
    )


def make_truth(contexts: int) -> Truth:
    """The rule, with the first ``contexts`` contexts."""
    nouns = {noun: kind for kind, words in NOUNS.items() for noun in words.split()}
    classes = {kind: tuple(words.split()) for kind, words in ADJECTIVES.items()}
    return Truth(nouns=nouns, classes=classes, contexts=CONTEXTS[:contexts])


def split_pairs(truth: Truth, *, share: float, seed: int) -> tuple[list[Pair], list[Pair]]:
    """(noun, context) pairs for training and held-out ones; every noun has some on both sides."""
    contexts = len(truth.contexts)
    apart = min(contexts - 1, max(1, round(share * contexts)))
    seen: list[Pair] = []
    heldout: list[Pair] = []
    for number, noun in enumerate(truth.nouns):
        chosen = set(permutation(contexts, seed, number)[:apart])
        for place, context in enumerate(truth.contexts):
            (heldout if place in chosen else seen).append((noun, context))
    return seen, heldout


def make_rows(
    truth: Truth, pairs: list[Pair], count: int, rng: random.Random, *, shares: Rows
) -> Iterator[dict[str, Any]]:
    """Rows of the three kinds, each about a random pair."""
    for _ in range(count):
        noun, context = rng.choice(pairs)
        kind = rng.random()
        scores = kind < shares.scoring_share
        labelled = not scores and kind < shares.scoring_share + shares.labelled_share
        if scores:
            said = sample_any(truth, noun, rng)
        elif labelled:
            said = sample_varied(truth, noun, rng)
        else:
            said = sample_plain(truth, noun, rng, care=shares.care)
        question = ask(truth, (noun, context))
        response = truth.response(noun, said)
        row: dict[str, Any] = {
            "messages": [question, {"role": "assistant", "content": response}],
        }
        if scores or labelled:
            label = truth.score(question["content"], response)
            if labelled and rng.random() < shares.mislabelled_share:
                label = rng.choice(truth.reachable_labels())
            row["label"] = truth.format(label)
            row["type"] = "TEXT_TO_VALUE" if scores else "VALUE_TO_TEXT"
        yield row


def rate_rows(
    truth: Truth, pairs: list[Pair], count: int, rng: random.Random
) -> Iterator[dict[str, Any]]:
    """Answers as a judge meets them, each about a random pair, with their true attributes."""
    for _ in range(count):
        noun, context = rng.choice(pairs)
        question = ask(truth, (noun, context))
        response = truth.response(noun, sample_any(truth, noun, rng))
        yield {
            "messages": [question, {"role": "assistant", "content": response}],
            "attributes": truth.score(question["content"], response),
        }
