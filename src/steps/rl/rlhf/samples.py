"""The best and the worst samples of a step with what was said about them, to be read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nemotron_style.steps.blocks.data.jsonl import write_rows
from nemotron_style.steps.blocks.judge.group_judge import JudgedGroups
from nemotron_style.steps.blocks.judge.verdict import Verdict
from nemotron_style.steps.rl.rlhf.rollout import Rollout
from nemotron_style.steps.rl.rlhf.train_sample import Lesson

FOLDER = "samples"
SHOWN = 4
WIDTH = 70


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
    rows.sort(key=lambda row: (-row["reward"], row["group"], row["sample"]))
    return rows if len(rows) <= 2 * SHOWN else rows[:SHOWN] + rows[-SHOWN:]


def write_table(run_dir: Path, step: int, rows: Sequence[dict[str, Any]]) -> None:
    """Write ``samples/step-00000001.jsonl``; a step that is done again writes the same."""
    folder = run_dir / FOLDER
    folder.mkdir(exist_ok=True)
    write_rows(folder / f"step-{step:08d}.jsonl", rows)


def tell(rows: Sequence[dict[str, Any]]) -> str:
    """The best and the worst of them in one line."""
    if not rows:
        return "no sample has a reward"
    return "; ".join(
        f"{word} {row['reward']:.3g} {_shorten(row['answer'])}"
        for word, row in (("best", rows[0]), ("worst", rows[-1]))
    )


def _verdicts_on(judged: JudgedGroups, group: int, place: int) -> list[list[float]]:
    return [
        [pair.first, pair.second, verdict.score_1, verdict.score_2, verdict.ranking]
        for pair, verdict in judged.verdicts[group]
        if isinstance(verdict, Verdict) and place in (pair.first, pair.second)
    ]


def _shorten(text: str) -> str:
    plain = " ".join(text.split())
    return plain if len(plain) <= WIDTH else plain[: WIDTH - 3] + "..."
