"""Rows of the table of samples: what was said, its score, and whether it was kept."""

from __future__ import annotations

from collections.abc import Sequence

from nemotron_style.steps.blocks.training.sample_table import Row, best_and_worst
from nemotron_style.steps.rs.actor.best_of_n import Choice
from nemotron_style.steps.rs.actor.rollout import Rollout


def sample_rows(rollouts: Sequence[Rollout], choices: Sequence[Choice]) -> list[Row]:
    """The best and the worst samples of a step that have a score.

    ``group`` is the index of the prompt in the step, ``sample`` that in its group.
    """
    rows = [
        {
            "reward": score.score,
            "kept": index in choice.kept,
            "tied": choice.tied,
            "group": group,
            "sample": index,
            "prompt": rollout.prompt.question,
            "response": response.text,
            "finished": response.finished,
            "tokens": len(response.tokens),
            "attributes": dict(score.attributes),
        }
        for group, (rollout, choice) in enumerate(zip(rollouts, choices, strict=True))
        for index, (response, score) in enumerate(
            zip(rollout.responses, rollout.scores, strict=True)
        )
        if score is not None
    ]
    return best_and_worst(rows)
