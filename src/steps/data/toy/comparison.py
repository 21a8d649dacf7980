"""Two answers to a prompt, compared aloud: what a generative judge is trained on and measured by.

The judge goes through each answer word by word before it gives numbers. That is what a small model
can learn: asked for both scores at once, one of 0.3M weights stays at chance, because it has to
keep two answers apart and count at the same time. Saying each word with a mark splits this into
finding the next word, knowing whether it fits, and counting marks. The marks of the two answers
differ, so that what is counted for one is never counted for the other. Nothing else
stands there, because it delays learning: with the noun and commas in it, a judge that finds every
word after 400 updates of 16 rows still missed one in ten after 1,000.

What the judge goes through is the adjectives, so it is blind to an answer about another noun and
to broken grammar. Of 2,304 answers of ``sft/chat -c tiny``, 4 and 24 were such.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from nemotron_style.steps.blocks.data.toy_truth import Truth
from nemotron_style.steps.data.toy.answer import (
    Pair,
    ask,
    sample_any,
    sample_plain,
    sample_varied,
)

MARKS = (("First", "fits", "odd"), ("Second", "right", "wrong"))
"""For each answer: how it is called, and the marks of a word that fits and of one that does not."""

EVEN, LEAST, MOST = 3.5, 1, 6
"""Rankings: of equal answers, and the ends of the scale."""

Words = list[str]


def comparison_rows(
    truth: Truth, pairs: list[Pair], count: int, rng: random.Random
) -> Iterator[dict[str, Any]]:
    """Rows to train a judge on: a prompt, two answers, and the judgement."""
    for one in _sample_comparisons(truth, pairs, count, rng):
        judgement = judge(truth, one.noun, one.answers, one.scores)
        yield {"messages": [*one.messages, {"role": "assistant", "content": judgement}]}


def heldout_rows(
    truth: Truth, pairs: list[Pair], count: int, rng: random.Random
) -> Iterator[dict[str, Any]]:
    """Rows to measure a judge by: a prompt, two answers, and the scores that they deserve."""
    for one in _sample_comparisons(truth, pairs, count, rng):
        known = dict(zip(("score_1", "score_2"), one.scores, strict=True))
        yield {"messages": one.messages, "truth": known}


def judge(truth: Truth, noun: str, answers: Sequence[Words], scores: Sequence[int]) -> str:
    """The judgement of two answers: every word with its mark, then the verdict as JSON."""
    fitting, parts = truth.fitting(noun), []
    for (name, good, bad), words in zip(MARKS, answers, strict=True):
        marked = (f"{word} {good if word in fitting else bad}" for word in words)
        parts.append(f"{name}: {' '.join(marked)}.")
    verdict = {"score_1": scores[0], "score_2": scores[1], "ranking": rank(*scores)}
    return " ".join([*parts, json.dumps(verdict)])


def rank(score_1: int, score_2: int) -> float:
    """From 1 (the first is much better) to 6; 3.5, which favours neither, for equal scores."""
    lead = score_1 - score_2
    if lead == 0:
        return EVEN
    return max(LEAST, 4 - lead) if lead > 0 else min(MOST, 3 - lead)


@dataclass(frozen=True)
class _Comparison:
    """A question to a judge: what is asked about, two answers' words, and their scores, 1 to 5."""

    noun: str
    messages: Sequence[dict[str, str]]
    answers: Sequence[Words]
    scores: Sequence[int]


def _sample_comparisons(
    truth: Truth, pairs: list[Pair], count: int, rng: random.Random
) -> Iterator[_Comparison]:
    for _ in range(count):
        noun, context = rng.choice(pairs)
        question = ask(truth, (noun, context))
        answers = [_answer(truth, noun, rng) for _ in MARKS]
        texts = [truth.response(noun, words) for words in answers]
        said = [{"role": f"response_{n}", "content": text} for n, text in enumerate(texts, 1)]
        labels = [truth.score(question["content"], text) for text in texts]
        scores = [label["helpfulness"] + 1 for label in labels]
        yield _Comparison(noun, [question, *said], answers, scores)


def _answer(truth: Truth, noun: str, rng: random.Random) -> Words:
    """Adjectives of an answer of any quality, as a model that is sampled from gives them."""
    return rng.choice((sample_any, sample_plain, sample_varied))(truth, noun, rng)
