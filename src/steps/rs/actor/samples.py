"""Rows of the tables of samples: what was said, its score, and whether it was kept."""

from __future__ import annotations

from collections.abc import Sequence

from nemotron_style.runtime.step.context import StepContext
from nemotron_style.steps.blocks.data.prompt import Prompt
from nemotron_style.steps.blocks.training.sample_table import Row, write_validation
from nemotron_style.steps.rs.actor.best_of_n import Choice
from nemotron_style.steps.rs.actor.rollout import Rollout
from nemotron_style.steps.rs.actor.validation import ValidationResult


def sample_rows(rollouts: Sequence[Rollout], choices: Sequence[Choice]) -> list[Row]:
    """The samples of a step that have a score.

    ``group`` is the index of the prompt in the step, ``sample`` that in its group.
    """
    return [
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


def write_held_out(
    ctx: StepContext, start: ValidationResult, now: ValidationResult, prompts: Sequence[Prompt]
) -> None:
    """Write the held-out responses of which the reward grew most and least."""
    if ctx.is_first:
        rows = validation_rows(start, now, prompts)
        write_validation(ctx.run_dir, now.step, rows, gain=_gain)


def validation_rows(
    start: ValidationResult, now: ValidationResult, prompts: Sequence[Prompt]
) -> list[Row]:
    """Responses to held-out prompts, at the start and now, each pair with its rewards.

    ``truth`` has what is true of both, where that is known. A pair without two rewards is left out.
    """
    rows: list[Row] = []
    for index, (old, new) in enumerate(zip(start.texts, now.texts, strict=False)):
        rewards = [start.rewards[index], now.rewards[index]]
        if None in rewards:
            continue
        row: Row = {"prompt": prompts[index % now.prompts].question, "before": old, "after": new}
        row["rewards"] = rewards
        if now.truth:
            both = (start.truth, now.truth)
            row["truth"] = [{name: x[index] for name, x in one.items()} for one in both]
        rows.append(row)
    return rows


def _gain(row: Row) -> float:
    before, after = row["rewards"]
    return float(after - before)
