"""Two answers to a prompt, compared aloud: what a generative judge is trained on and measured by.

The judge goes through each answer word by word before it gives numbers. That is what a small model
can learn: asked for both scores at once, one of 0.3M weights stays at chance, because it has to
keep two answers apart and count at the same time. Saying each word with a mark splits this into
finding the next word, knowing whether it fits, and counting marks. The marks of the two answers
differ, so that what is counted for one is never counted for the other.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from nemotron_style.steps.blocks.truth import Truth
from nemotron_style.steps.data.toy.answer import Pair, ask, draw_any, draw_plain, draw_varied

MARKS = (("First", "fits", "odd"), ("Second", "right", "wrong"))
"""For each answer: how it is called, and the marks of a word that fits and of one that does not."""

ELSEWHERE = 0.02
"""Share of answers about another noun than the prompt's."""

EVEN, LEAST, MOST = 3.5, 1, 6


@dataclass(frozen=True)
class Said:
    """An answer: its noun and its adjectives, and the text in which they stand."""

    noun: str
    words: Sequence[str]
    text: str


def comparison_rows(
    truth: Truth, pairs: list[Pair], count: int, rng: random.Random
) -> Iterator[dict[str, Any]]:
    """Rows to train a judge on: a prompt, two answers, and the judgement."""
    for question, answers, scores in _draw(truth, pairs, count, rng):
        judgement = {"role": "assistant", "content": judge(truth, question, answers, scores)}
        yield {"messages": [*_messages(question, answers), judgement]}


def heldout_rows(
    truth: Truth, pairs: list[Pair], count: int, rng: random.Random
) -> Iterator[dict[str, Any]]:
    """Rows to measure a judge by: a prompt, two answers, and the scores that they deserve."""
    for question, answers, scores in _draw(truth, pairs, count, rng):
        known = {"score_1": scores[0], "score_2": scores[1]}
        yield {"messages": _messages(question, answers), "truth": known}


def judge(
    truth: Truth, question: dict[str, str], answers: Sequence[Said], scores: Sequence[int]
) -> str:
    """The judgement of two answers: every word with its mark, then the verdict as JSON."""
    asked = truth.noun_of(question["content"])
    parts = [
        f"{name}: {_go_through(truth, asked, answer, marks=marks)}."
        for (name, *marks), answer in zip(MARKS, answers, strict=True)
    ]
    verdict = {"score_1": scores[0], "score_2": scores[1], "ranking": rank(*scores)}
    return " ".join([*parts, json.dumps(verdict)])


def _go_through(truth: Truth, asked: str, answer: Said, *, marks: Sequence[str]) -> str:
    """An answer's noun, and its words with their marks, unless it is worth nothing anyway."""
    if answer.noun != asked:
        return f"{answer.noun} instead"
    good, bad = marks
    fitting = truth.fitting(asked)
    return ", ".join([answer.noun, *(f"{w} {good if w in fitting else bad}" for w in answer.words)])


def rank(score_1: int, score_2: int) -> float:
    """From 1 (the first is much better) to 6; 3.5, which favours neither, for equal scores."""
    lead = score_1 - score_2
    if lead == 0:
        return EVEN
    return max(LEAST, 4 - lead) if lead > 0 else min(MOST, 3 - lead)


def _draw(
    truth: Truth, pairs: list[Pair], count: int, rng: random.Random
) -> Iterator[tuple[dict[str, str], list[Said], list[int]]]:
    """Questions with two answers each, and their scores from 1 to 5."""
    for _ in range(count):
        noun, context = rng.choice(pairs)
        question = ask(truth, (noun, context))
        answers = [_answer(truth, noun, rng) for _ in MARKS]
        asked = question["content"]
        scores = [truth.score(asked, said.text)["helpfulness"] + 1 for said in answers]
        yield question, answers, scores


def _answer(truth: Truth, noun: str, rng: random.Random) -> Said:
    """An answer of any quality, as a model that is sampled from gives them."""
    words = rng.choice((draw_any, draw_plain, draw_varied))(truth, noun, rng)
    if rng.random() < ELSEWHERE:
        noun = rng.choice([other for other in truth.nouns if other != noun])
    return Said(noun, words, truth.response(noun, words))


def _messages(question: dict[str, str], answers: Sequence[Said]) -> list[dict[str, str]]:
    responses = enumerate(answers, 1)
    return [question, *({"role": f"response_{n}", "content": said.text} for n, said in responses)]
