"""The best and the worst samples of a step, to be read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nemotron_style.steps.blocks.data.jsonl import write_rows
from nemotron_style.steps.rs.actor.best_of_n import Choice
from nemotron_style.steps.rs.actor.rollout import Rollout

FOLDER = "samples"
SHOWN = 4
WIDTH = 70


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
    rows.sort(key=lambda row: (-row["reward"], row["group"], row["sample"]))
    return rows if len(rows) <= 2 * SHOWN else rows[:SHOWN] + rows[-SHOWN:]


def write_table(run_dir: Path, step: int, rows: Sequence[dict[str, Any]]) -> None:
    """Write ``samples/step-00000001.jsonl``; a step that is done again writes the same."""
    folder = run_dir / FOLDER
    folder.mkdir(exist_ok=True)
    write_rows(folder / f"step-{step:08d}.jsonl", rows)


def tell(rows: Sequence[dict[str, Any]]) -> str:
    """The best and the worst of them in one line."""
    return "; ".join(
        f"{word} {row['reward']:.3g} {_shorten(row['response'])}"
        for word, row in (("best", rows[0]), ("worst", rows[-1]))
    )


def _shorten(text: str) -> str:
    plain = " ".join(text.split())
    return plain if len(plain) <= WIDTH else plain[: WIDTH - 3] + "..."
