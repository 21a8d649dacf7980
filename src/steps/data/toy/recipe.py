"""A small corpus of conversations, drawn from a rule that can judge every answer to them.

It stands in for HelpSteer, whose labels it imitates: same form of label, same three kinds of rows
(plain answers, answers with the label before them, answers with the label after them). What it
leaves out is everything that makes real labels doubtful: here an answer's attributes are what
the truth says. Labelled rows are few on purpose, so that a model trained on the corpus follows
labels weakly and there is something left to gain.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

from nemotron_style.runtime.context import StepContext
from nemotron_style.steps.blocks.jsonl import write_rows
from nemotron_style.steps.blocks.order import permutation
from nemotron_style.steps.blocks.truth import LEVELS, Truth
from nemotron_style.steps.data.toy.config import Config, Rows
from nemotron_style.steps.data.toy.word import ADJECTIVES, CONTEXTS, NOUNS

Pair = tuple[str, str]


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

    # -- rows: a stream of random numbers for each side, so that one's length leaves the other be
    sides = (("train", seen, config.rows.train), ("validation", heldout, config.rows.validation))
    for slot, pairs, count in sides:
        rng = random.Random(f"{config.seed}/{slot}")
        rows = draw_rows(truth, pairs, count=count, shares=config.rows, rng=rng)
        write_rows(ctx.output(slot).path / f"{slot}.jsonl", rows)
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


def draw_rows(
    truth: Truth, pairs: list[Pair], *, count: int, shares: Rows, rng: random.Random
) -> Iterator[dict[str, Any]]:
    """Rows of the three kinds, each about a random pair."""
    for _ in range(count):
        pair = rng.choice(pairs)
        noun, kind = pair[0], rng.random()
        scores = kind < shares.scoring_share
        labelled = not scores and kind < shares.scoring_share + shares.labelled_share
        if scores and rng.random() < shares.stray_share:
            noun = rng.choice([other for other in truth.nouns if other != noun])
        # a labelled row asks for its label, so that must be one that is reached without repeating
        repeated_share = 0.0 if labelled else shares.repeated_share
        response = draw_response(truth, noun, repeated_share=repeated_share, rng=rng)
        question = ask(truth, pair)
        row: dict[str, Any] = {
            "messages": [question, {"role": "assistant", "content": response}],
        }
        if scores or labelled:
            row["label"] = truth.format(truth.score(question["content"], response))
            row["type"] = "TEXT_TO_VALUE" if scores else "VALUE_TO_TEXT"
        yield row


def draw_response(truth: Truth, noun: str, *, repeated_share: float, rng: random.Random) -> str:
    """A sentence with one to five adjectives; how many of them fit varies from all to few."""
    fitting, sure = truth.fitting(noun), rng.random()
    wanted = rng.randint(1, LEVELS)
    said: list[str] = []
    while len(said) < wanted:
        word = rng.choice(fitting if rng.random() < sure else truth.adjectives)
        said += [word] if word not in said else []
    if wanted > 1 and rng.random() < repeated_share:
        earlier, later = sorted(rng.sample(range(wanted), 2))
        said[later] = said[earlier]
    return truth.response(noun, said)


def ask(truth: Truth, pair: Pair) -> dict[str, str]:
    """The user's message about a noun in a context."""
    return {"role": "user", "content": truth.prompt(*pair)}
