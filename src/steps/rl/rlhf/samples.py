"""The best and the worst samples of a step with what was said about them, to be read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from nemotron_style.steps.blocks.judge.group_judge import JudgedGroups
from nemotron_style.steps.blocks.judge.verdict import Verdict
from nemotron_style.steps.blocks.training.sample_table import best_and_worst
from nemotron_style.steps.rl.rlhf.rollout import Rollout
from nemotron_style.steps.rl.rlhf.train_sample import Lesson


def sample_table(
    rollouts: Sequence[Rollout], judged: JudgedGroups, lessons: Sequence[Lesson]
) -> list[dict[str, Any]]:
    """Rows of the best and of the worst samples, best first; each stands once.

    ``group`` is the place of the prompt in the step, ``sample`` that in its group. ``verdicts``
    are ``[first, second, score_1, score_2, ranking]`` of the comparisons that it was part of.
    """
    taught = iter(lessons)
    rows = []
    for group, (rollout, rewards) in enumerate(zip(rollouts, judged.rewards, strict=True)):
        for place, sample in enumerate(rollout.samples):
            lesson = next(taught)
            if rewards is None:
                continue
            rows.append(
                {
                    "reward": rewards[place],
                    "advantage": lesson.advantage,
                    "group": group,
                    "sample": place,
                    "prompt": rollout.prompt.question,
                    "answer": sample.answer.text,
                    "truncated": sample.truncated,
                    "tokens": len(sample.tokens),
                    "verdicts": _verdicts_on(judged, group, place),
                }
            )
    return best_and_worst(rows)


def _verdicts_on(judged: JudgedGroups, group: int, place: int) -> list[list[float]]:
    return [
        [pair.first, pair.second, verdict.score_1, verdict.score_2, verdict.ranking]
        for pair, verdict in judged.verdicts[group]
        if isinstance(verdict, Verdict) and place in (pair.first, pair.second)
    ]
