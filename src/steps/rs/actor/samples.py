"""The best and the worst samples of a step, to be read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from nemotron_style.steps.blocks.training.sample_table import best_and_worst
from nemotron_style.steps.rs.actor.best_of_n import Choice
from nemotron_style.steps.rs.actor.rollout import Rollout


def sample_table(rollouts: Sequence[Rollout], choices: Sequence[Choice]) -> list[dict[str, Any]]:
    """Rows of the best and of the worst samples, best first; each stands once.

    ``group`` is the place of the prompt in the step, ``sample`` that in its group.
    """
    rows = [
        {
            "reward": scored.score,
            "kept": place in choice.kept,
            "tied": choice.tied,
            "group": group,
            "sample": place,
            "prompt": rollout.prompt.question,
            "response": rollout.responses[place].text,
            "finished": rollout.responses[place].finished,
            "tokens": len(rollout.responses[place].tokens),
            "attributes": dict(scored.attributes),
        }
        for group, (rollout, choice) in enumerate(zip(rollouts, choices, strict=True))
        for place, scored in enumerate(rollout.scores)
        if scored is not None
    ]
    return best_and_worst(rows)
