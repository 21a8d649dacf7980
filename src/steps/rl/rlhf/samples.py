"""Rows of the table of samples: what was answered, its reward, and the verdicts on it."""

from __future__ import annotations

from collections.abc import Sequence

from nemotron_style.steps.blocks.judge.group_judge import JudgedGroups
from nemotron_style.steps.blocks.judge.verdict import Verdict
from nemotron_style.steps.blocks.training.sample_table import Row, best_and_worst
from nemotron_style.steps.rl.rlhf.rollout import Rollout
from nemotron_style.steps.rl.rlhf.train_sample import TrainSample


def sample_rows(
    rollouts: Sequence[Rollout], judged: JudgedGroups, samples: Sequence[TrainSample]
) -> list[Row]:
    """The best and the worst samples of a step; groups without rewards are left out.

    ``group`` is the index of the prompt in the step, ``sample`` that in its group. ``verdicts``
    are ``[first, second, score_1, score_2, ranking]`` of the comparisons that it was part of.
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
                }
            )
    return best_and_worst(rows)
