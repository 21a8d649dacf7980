"""The matches themselves: every one as a row, and the clearest wins and losses as a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nemotron_style.steps.blocks.data.markdown_table import markdown_table
from nemotron_style.steps.blocks.judge.verdict import Verdict
from nemotron_style.steps.blocks.training.sample_table import write_sample_rows
from nemotron_style.steps.eval.arena.match import SLOTS, Decision, Judgement, Match
from nemotron_style.steps.eval.arena.metrics import Levels

Row = dict[str, Any]


def sample_rows(
    matches: Sequence[Match], decisions: Sequence[Decision], levels: Sequence[Levels] | None
) -> list[Row]:
    """One row a match: the prompt, both answers, and who was preferred by how much.

    ``margins`` are the model's in both orders, in the judge's points; ``score`` is its share of
    the win, null where the judge failed.
    """
    rows = []
    for index, (match, decision) in enumerate(zip(matches, decisions, strict=True)):
        row: Row = {
            "messages": [dict(message) for message in match.history],
            "number": match.number,
            "model": match.model,
            "baseline": match.baseline,
            "decided": decision.how,
            "margins": list(decision.margins),
            "score": decision.score if decision.margins else None,
        }
        if levels is not None:
            row["helpfulness"] = dict(zip(SLOTS, levels[index], strict=True))
        rows.append(row)
    return rows


def write_words(run_dir: Path, judgements: Sequence[Sequence[Judgement]]) -> None:
    """Write ``samples/words.jsonl``: what the judge said of each match, in both orders.

    It lies in the run's folder, not among the results: a judge that samples says the same in other
    words when it is asked again. A row a match, in their order; none for what it was not asked.
    """
    said = [[one.words for one in own if isinstance(one, Verdict)] for own in judgements]
    write_sample_rows(run_dir, "words.jsonl", [{"words": words} for words in said])


def sample_table(rows: Sequence[Row], *, shown: int) -> str:
    """The ``shown`` wins and losses of the widest mean margin, as Markdown."""
    judged = [row for row in rows if row["decided"] == "judged"]
    wins = sorted((row for row in judged if row["score"] > 0.5), key=_margin, reverse=True)
    losses = sorted((row for row in judged if row["score"] < 0.5), key=_margin)
    lines = ["# Samples"]
    for title, chosen in (("Best wins", wins), ("Worst losses", losses)):
        table = markdown_table(["margins", "prompt", *SLOTS], map(_cells, chosen[:shown]))
        lines += ["", f"## {title} ({len(chosen)} in all)", "", *table]
    return "\n".join(lines) + "\n"


def _margin(row: Mapping[str, Any]) -> float:
    return float(sum(row["margins"]))


def _cells(row: Row) -> list[str]:
    margins = ", ".join(f"{margin:+g}" for margin in row["margins"])
    levels = row.get("helpfulness", {})
    answers = [
        str(row[slot]) if levels.get(slot) is None else f"{row[slot]} (helpfulness {levels[slot]})"
        for slot in SLOTS
    ]
    return [margins, row["messages"][-1]["content"], *answers]
