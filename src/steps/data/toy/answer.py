"""Questions of the toy, and the adjectives of answers to them, sampled in several ways."""

from __future__ import annotations

import random

from nemotron_style.steps.blocks.data.toy_truth import LEVELS, Truth

Pair = tuple[str, str]
"""A noun and a context: what a prompt asks about."""


def sample_plain(truth: Truth, noun: str, rng: random.Random, *, care: float = 1.0) -> list[str]:
    """Adjectives of an ordinary answer: in half of the answers all fit, in others as it happens.

    With ``care`` 1/2 only the luckiest fit throughout, and with 0 all are random.
    """
    fitting, sure = truth.fitting(noun), 2 * care * rng.random()
    wanted = rng.randint(1, LEVELS)
    said: list[str] = []
    while len(said) < wanted:
        word = rng.choice(fitting if rng.random() < sure else truth.adjectives)
        said += [word] if word not in said else []
    return said


def sample_varied(truth: Truth, noun: str, rng: random.Random) -> list[str]:
    """Adjectives of an answer that is shown with its label: every share of fitting ones alike."""
    fitting, wanted = truth.fitting(noun), rng.randint(1, LEVELS)
    others = [word for word in truth.adjectives if word not in fitting]
    fits = rng.randint(0, wanted)
    said = rng.sample(fitting, fits) + rng.sample(others, wanted - fits)
    rng.shuffle(said)
    return said


def sample_any(truth: Truth, noun: str, rng: random.Random) -> list[str]:
    """Adjectives to be judged: like :func:`sample_varied`, but some twice, and a few too many.

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
