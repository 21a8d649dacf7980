"""Rows of the tables of samples: what was answered, its reward, and the verdicts on it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from statistics import fmean
from typing import Any

from nemotron_style.steps.blocks.data.prompt import Prompt
from nemotron_style.steps.blocks.data.toy_truth import Truth
from nemotron_style.steps.blocks.judge.group_judge import JudgedGroups, Judgement
from nemotron_style.steps.blocks.judge.verdict import Verdict
from nemotron_style.steps.blocks.training.sample_table import Row
from nemotron_style.steps.rl.rlhf.rollout import Rollout
from nemotron_style.steps.rl.rlhf.train_sample import TrainSample

MOST_VERDICTS = 4
"""Of one sample, with the judge's words: a tournament of all pairs has many."""


def sample_rows(
    rollouts: Sequence[Rollout], judged: JudgedGroups, samples: Sequence[TrainSample]
) -> list[Row]:
    """The samples of a step; groups without rewards are left out.

    ``group`` is the index of the prompt in the step, ``sample`` that in its group. ``verdicts``
    are ``[first, second, score_1, score_2, ranking]`` of the comparisons that it was part of;
    ``judged`` has the same with the other answer and with the judge's words, of the first few.
    """
    advantages = iter([one.advantage for one in samples])
    rows = []
    for group, (rollout, rewards) in enumerate(zip(rollouts, judged.rewards, strict=True)):
        for index, sample in enumerate(rollout.samples):
            advantage = next(advantages)
            if rewards is None:
                continue
            rows.append(
                {
                    "reward": rewards[index],
                    "advantage": advantage,
                    "group": group,
                    "sample": index,
                    "prompt": rollout.prompt.question,
                    "answer": sample.answer.text,
                    "truncated": sample.truncated,
                    "tokens": len(sample.tokens),
                    "verdicts": [
                        [pair.first, pair.second, verdict.score_1, verdict.score_2, verdict.ranking]
                        for pair, verdict in judged.verdicts[group]
                        if isinstance(verdict, Verdict) and index in (pair.first, pair.second)
                    ],
                    "judged": list(_judged(rollout, judged.verdicts[group], index))[:MOST_VERDICTS],
                }
            )
    return rows


def _judged(
    rollout: Rollout, judgements: Sequence[Judgement], index: int
) -> Iterator[dict[str, Any]]:
    """The comparisons of a sample with others: who it met, the scores of both, what was said."""
    for pair, verdict in judgements:
        if not isinstance(verdict, Verdict) or index not in (pair.first, pair.second):
            continue
        shown_first = index == pair.first
        other = rollout.samples[pair.second if shown_first else pair.first]
        yield {"against": other.answer.text, **describe_verdict(verdict, shown_first=shown_first)}


def describe_verdict(verdict: Verdict, *, shown_first: bool) -> dict[str, Any]:
    """A verdict from the side of one of the two answers: its score, the other's, the words.

    ``preference`` is above 0 where the judge prefers it.
    """
    scores = [verdict.score_1, verdict.score_2]
    return {
        "scores": scores if shown_first else scores[::-1],
        "preference": verdict.preference if shown_first else -verdict.preference,
        "shown": "first" if shown_first else "second",
        "words": verdict.words,
    }


def validation_rows(
    before: Sequence[Sequence[str]],
    after: Sequence[Sequence[str]],
    prompts: Sequence[Prompt],
    *,
    judged: JudgedGroups,
    truth: Truth | None,
) -> list[Row]:
    """Answers to held-out prompts, at the start and now, with the verdicts and the truth on both.

    ``margin`` is how much the judge prefers the answer of now, in points, over both orders. Pairs
    of which a judgement failed are left out.
    """
    pairs = [
        (prompt.question, old, new)
        for prompt, olds, news in zip(prompts, before, after, strict=True)
        for old, new in zip(olds, news, strict=True)
    ]
    rows = []
    for (question, old, new), verdicts in zip(pairs, judged.verdicts, strict=True):
        told = [
            describe_verdict(verdict, shown_first=pair.first == 1)
            for pair, verdict in verdicts
            if isinstance(verdict, Verdict)
        ]
        if not told or len(told) < len(verdicts):
            continue
        row: Row = {"prompt": question, "before": old, "after": new, "judged": told}
        row["margin"] = fmean(each["preference"] for each in told)
        if truth is not None:
            row["truth"] = [truth.score(question, text) for text in (old, new)]
        rows.append(row)
    return rows
