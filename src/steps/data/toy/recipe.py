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

    # -- answers of every quality with what they are worth, for models that judge
    sides = (
        ("rated", seen, config.rows.rated),
        ("rated_heldout", heldout, config.rows.rated_heldout),
    )
    for slot, pairs, count in sides:
        rng = random.Random(f"{config.seed}/{slot}")
        write_rows(ctx.output(slot).path / f"{slot}.jsonl", rate_rows(truth, pairs, count, rng))
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
        noun, context = rng.choice(pairs)
        kind = rng.random()
        scores = kind < shares.scoring_share
        labelled = not scores and kind < shares.scoring_share + shares.labelled_share
        if scores:
            said = draw_any(truth, noun, rng)
        elif labelled:
            said = draw_varied(truth, noun, rng)
        else:
            said = draw_plain(truth, noun, rng)
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
        response = truth.response(noun, draw_any(truth, noun, rng))
        yield {
            "messages": [question, {"role": "assistant", "content": response}],
            "attributes": truth.score(question["content"], response),
        }


def draw_plain(truth: Truth, noun: str, rng: random.Random) -> list[str]:
    """Adjectives of an ordinary answer: in half of the answers all fit, in others as it happens."""
    fitting, sure = truth.fitting(noun), 2 * rng.random()
    wanted = rng.randint(1, LEVELS)
    said: list[str] = []
    while len(said) < wanted:
        word = rng.choice(fitting if rng.random() < sure else truth.adjectives)
        said += [word] if word not in said else []
    return said


def draw_varied(truth: Truth, noun: str, rng: random.Random) -> list[str]:
    """Adjectives of an answer that is shown with its label: every share of fitting ones alike."""
    fitting, wanted = truth.fitting(noun), rng.randint(1, LEVELS)
    others = [word for word in truth.adjectives if word not in fitting]
    fits = rng.randint(0, wanted)
    said = rng.sample(fitting, fits) + rng.sample(others, wanted - fits)
    rng.shuffle(said)
    return said


def draw_any(truth: Truth, noun: str, rng: random.Random) -> list[str]:
    """Adjectives to be judged: like :func:`draw_varied`, but some twice, and a few too many.

    A model that is sampled from says such things, and the attributes of those must be right too.
    Short answers are more frequent: they say most plainly which adjective fits.
    """
    fitting = truth.fitting(noun)
    wanted = min(rng.randint(1, LEVELS), rng.randint(1, LEVELS))
    wanted += rng.randint(1, 2) if rng.random() < 0.05 else 0
    others = [word for word in truth.adjectives if word not in fitting]
    fits = rng.randint(0, wanted)
    said = rng.choices(fitting, k=fits) + rng.choices(others, k=wanted - fits)
    rng.shuffle(said)
    return said


def ask(truth: Truth, pair: Pair) -> dict[str, str]:
    """The user's message about a noun in a context."""
    return {"role": "user", "content": truth.prompt(*pair)}
